"""Settings that look back at the output, and log-probabilities, through the whole engine and against transformers."""

from typing import Any

import numpy as np
import pytest

from engine.interface import Sampling

OUTPUTS = 20
SETTINGS = (
    Sampling(temperature=0.9, seed=4, presence_penalty=0.8, frequency_penalty=0.5, repetition_penalty=1.2),
    Sampling(temperature=0, repetition_penalty=1.5, logit_bias={7: 3.0, 9: -100.0}),
    Sampling(temperature=1.3, seed=5, min_p=0.05, frequency_penalty=-0.3, min_tokens=12, stop_token_ids=(3, 4, 5)),
    Sampling(temperature=0.7, seed=6, ignore_eos=True),
)


def prompt(length: int, seed: int) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(3, 199, length).tolist()
    return tokens


@pytest.mark.parametrize("asked", SETTINGS[:3], ids=["penalties", "bias", "stops"])
def test_tokens_and_log_probabilities_are_the_same_alone_chunked_in_company_and_after_preemption(
    asked: Sampling, driver: Any, open_engine: Any
) -> None:
    import msgspec

    engine = open_engine("llama")
    asked = msgspec.structs.replace(asked, logprobs=3)

    def run(mates: int, chunk: int, in_flight: int, *, preempted: bool = False) -> Any:
        made = driver(engine, in_flight)
        made.add(100, prompt(30, 1), asked)
        for mate in range(mates):
            other = msgspec.structs.replace(SETTINGS[mate % 4], logprobs=(None, 0, 20)[mate % 3])
            made.add(mate, prompt(4 + 5 * mate, 2 + mate), other)
        if preempted:
            for num_outputs in (5, 6, 13):
                made.run(num_outputs, chunk)
                made.preempt(100)
        made.run(OUTPUTS, chunk)
        engine.forget(list(made.outputs))
        return made.outputs[100], made.ended[100], [[token for token, _ in entries] for entries in made.logprobs[100]]

    alone = run(0, 64, 1)
    assert len(set(alone[0])) > 3
    assert run(0, 7, 2) == alone
    assert run(6, 16, 2) == alone
    assert run(2, 64, 1, preempted=True) == alone


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_every_setting_means_the_same_on_cuda(driver: Any, open_engine: Any) -> None:
    import msgspec

    made = []
    for settings in ({}, {"device": "cuda", "dtype": "float32", "attention": "sdpa_gather"}):
        run = driver(open_engine("llama", **settings), in_flight=2)
        for sequence, asked in enumerate(SETTINGS):
            run.add(sequence, prompt(20, sequence), msgspec.structs.replace(asked, logprobs=5))
        run.run(OUTPUTS, 7, max_prefills=4)
        made.append(run)
    here, there = made
    assert there.outputs == here.outputs
    assert there.ended == here.ended
    for sequence, positions in here.logprobs.items():
        numbers = [value for entries in positions for _, value in entries]
        assert [value for entries in there.logprobs[sequence] for _, value in entries] == pytest.approx(
            numbers, abs=1e-3
        )


def test_greedy_tokens_under_a_repetition_penalty_are_those_of_transformers(
    references: Any, driver: Any, open_engine: Any
) -> None:
    import torch

    inputs = torch.tensor([prompt(25, 3)])
    options = {"max_new_tokens": OUTPUTS, "do_sample": False, "eos_token_id": [], "pad_token_id": 0}
    expected = references("llama")[1].generate(inputs, attention_mask=torch.ones_like(inputs), **options)
    penalised = references("llama")[1].generate(
        inputs, attention_mask=torch.ones_like(inputs), repetition_penalty=1.6, **options
    )
    run = driver(open_engine("llama"), in_flight=2)
    run.add(1, prompt(25, 3), Sampling(temperature=0, ignore_eos=True, repetition_penalty=1.6))
    run.run(OUTPUTS, 9)
    assert run.outputs[1] == penalised[0, 25:].tolist() != expected[0, 25:].tolist()


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_log_probabilities_are_those_of_transformers(
    chunk: int, references: Any, driver: Any, open_engine: Any
) -> None:
    import torch

    run = driver(open_engine("llama"), in_flight=2)
    penalised = {"presence_penalty": 1.5, "logit_bias": {8: 4.0}, "min_tokens": 99}
    run.add(1, prompt(40, 1), Sampling(temperature=0.8, seed=1, logprobs=20, **penalised))
    run.add(2, prompt(17, 2), Sampling(temperature=0, logprobs=0, ignore_eos=True))
    run.add(3, prompt(9, 3), Sampling(temperature=1, ignore_eos=True))
    run.run(OUTPUTS, chunk)
    assert sorted(run.logprobs) == [1, 2]
    assert [len(entries) for entries in run.logprobs[2]] == [1] * OUTPUTS
    for sequence, length in ((1, 40), (2, 17)):
        tokens = prompt(length, sequence) + run.outputs[sequence]
        with torch.no_grad():
            logits = references("llama")[1](torch.tensor([tokens])).logits[0, length - 1 : -1]
        raw = logits.log_softmax(-1)
        for position, (token, *top) in enumerate(run.logprobs[sequence]):
            assert token[0] == run.outputs[sequence][position]
            for each, value in (token, *top):
                assert value == pytest.approx(float(raw[position, each]), abs=1e-4)
            if top:
                best = raw[position].topk(20)
                assert [value for _, value in top] == pytest.approx(best.values.tolist(), abs=1e-4)
                assert [each for each, _ in top] == best.indices.tolist()


def test_no_token_ends_a_sequence_before_its_least_length_and_then_one_may(driver: Any, open_engine: Any) -> None:
    engine = open_engine("llama")
    run = driver(engine, in_flight=2)
    bias = {2: 100.0, 11: 100.0}  # the model's end of sequence and a stop token: all else is never drawn
    run.add(1, prompt(5, 1), Sampling(seed=1, logit_bias=bias, min_tokens=4, stop_token_ids=(11,)))
    run.add(2, prompt(5, 1), Sampling(seed=1, logit_bias=bias, min_tokens=4, ignore_eos=True))
    run.add(3, prompt(5, 1), Sampling(seed=1, logit_bias={11: 100.0}, stop_token_ids=(11, 12), ignore_eos=True))
    run.run(6, 8)
    assert run.ended == {1: [False] * 4 + [True] * 2, 2: [False] * 6, 3: [True] * 6}
    assert {2, 11}.isdisjoint(run.outputs[1][:4])
    assert set(run.outputs[1][4:] + run.outputs[2]) <= {2, 11}
    assert run.outputs[3] == [11] * 6


def test_counts_of_a_sequence_that_ended_are_not_those_of_the_next_one(driver: Any, open_engine: Any) -> None:
    engine = open_engine("llama")
    asked = Sampling(temperature=0, ignore_eos=True, frequency_penalty=2.0, presence_penalty=2.0)
    outputs = []
    for sequence in range(5):  # more than there are rows of counts at first
        run = driver(engine)
        run.add(sequence, prompt(10, 1), asked)
        run.add(50 + sequence, prompt(10, 1), Sampling(temperature=0, ignore_eos=True))
        run.run(8, 16)
        engine.forget([sequence])  # its neighbour stays
        outputs.append(run.outputs[sequence])
    assert all(output == outputs[0] for output in outputs)
    engine.forget([50 + sequence for sequence in range(5)])
    assert len(outputs[0]) == len(set(outputs[0])) == 8


def test_a_mask_that_leaves_only_the_end_ends_a_sequence_short_of_its_least_length() -> None:
    import torch

    from engine.sampling.draw import sample
    from engine.sampling.slots import SlotSampling

    slots, numbers, positions = SlotSampling(8, 20, (2,), torch.device("cpu")), np.array([1, 2, 3]), np.zeros(3, int)
    for slot, temperature in ((1, 0.0), (2, 1.0), (3, 1e-5)):
        asked = Sampling(temperature=temperature, min_tokens=3, min_p=0.5 * (slot == 2), top_p=0.9)
        slots.start(slot, asked, np.array([1], np.int32), 1)
    logits = slots.adjusted(torch.randn(3, 20), numbers, positions)
    assert 2 not in sample(logits, slots.rows(numbers, positions)).tolist()
    logits[:, [token for token in range(20) if token != 2]] = -torch.inf
    assert sample(logits, slots.rows(numbers, positions)).tolist() == [2, 2, 2]
