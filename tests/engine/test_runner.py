"""Greedy tokens are those of transformers, however a step is put together."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.interface import EngineError, Sampling, SequenceStart, Step

VARIANTS = ("llama", "llama_bias_mha_tied", "llama3_rope", "llama_yarn", "llama_linear_rope")
VARIANTS += ("mistral", "qwen2", "qwen2_windows", "qwen3")
LENGTHS = (1, 5, 16, 17, 40)
OUTPUTS = 24


def prompts(lengths: tuple[int, ...] = LENGTHS, seed: int = 1) -> list[list[int]]:
    source = np.random.default_rng(seed)
    return [source.integers(3, 199, length).tolist() for length in lengths]


@pytest.fixture(scope="module")
def expected(references: Any, greedy: Any) -> Callable[[str], list[list[int]]]:
    """What transformers generates for `prompts()`."""
    known: dict[str, list[list[int]]] = {}

    def tokens(variant: str) -> list[list[int]]:
        if variant not in known:
            known[variant] = [greedy(references(variant)[1], prompt, OUTPUTS) for prompt in prompts()]
        return known[variant]

    return tokens


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_are_those_of_transformers_for_any_chunking(
    variant: str, expected: Any, driver: Any, open_engine: Any
) -> None:
    engine = open_engine(variant)
    for chunk in (1, 7, 16, 512):
        run = driver(engine)
        for sequence, prompt in enumerate(prompts()):
            run.add(sequence, prompt)
        run.run(OUTPUTS, chunk)
        assert list(run.outputs.values()) == expected(variant), f"chunk {chunk}"
        engine.forget(list(run.outputs))


@pytest.mark.parametrize("variant", ["llama", "mistral"])
@pytest.mark.parametrize("block_tokens", [16, 64])
def test_two_steps_in_flight_and_another_block_size_change_no_token(
    variant: str, block_tokens: int, expected: Any, driver: Any, open_engine: Any
) -> None:
    engine = open_engine(variant, kv_block_tokens=block_tokens)
    run = driver(engine, in_flight=2)
    for sequence, prompt in enumerate(prompts()):
        run.add(sequence, prompt)
    run.run(OUTPUTS, 7)
    assert list(run.outputs.values()) == expected(variant)


def test_a_preempted_sequence_goes_on_with_the_same_tokens(expected: Any, driver: Any, open_engine: Any) -> None:
    engine = open_engine("llama")
    run = driver(engine)
    for sequence, prompt in enumerate(prompts()):
        run.add(sequence, prompt)
    for num_outputs, victims in ((6, (1, 4)), (11, (0, 1, 3)), (12, (1,)), (OUTPUTS, ())):
        run.run(num_outputs, 16)
        for victim in victims:
            run.preempt(victim)
    assert list(run.outputs.values()) == expected("llama")


def test_tokens_do_not_depend_on_batch_mates(driver: Any, open_engine: Any) -> None:
    engine = open_engine("qwen3", kv_pool_tokens=16384)
    crowd = prompts(tuple(np.random.default_rng(3).integers(1, 60, 64).tolist()), seed=4)
    seen = []
    for size in (1, 7, 64):
        run = driver(engine, in_flight=2)
        for sequence, prompt in enumerate(crowd[:size]):
            run.add(sequence, prompt)
        run.run(OUTPUTS, 32, max_prefills=8)
        seen.append(run.outputs[0])
        engine.forget(list(run.outputs))
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == OUTPUTS


def test_sampled_tokens_depend_on_the_seed_and_on_nothing_else(driver: Any, open_engine: Any) -> None:
    engine = open_engine("llama")

    def outputs(mates: int, chunk: int, seed: int, *, preempted: bool = False) -> list[int]:
        run = driver(engine, in_flight=1 if preempted else 2)
        prompt, *others = prompts((20, *range(3, 3 + mates)))
        run.add(100, prompt, Sampling(temperature=0.9, top_p=0.95, top_k=50, seed=seed, ignore_eos=True))
        for sequence, other in enumerate(others):
            run.add(sequence, other, Sampling(temperature=1.0, top_p=(1.0, 0.5)[sequence % 2], ignore_eos=True))
        if preempted:
            run.run(9, chunk)
            run.preempt(100)
        run.run(OUTPUTS, chunk)
        engine.forget(list(run.outputs))
        tokens: list[int] = run.outputs[100]
        return tokens

    alone = outputs(0, 64, seed=11)
    assert outputs(6, 7, seed=11) == alone
    assert outputs(2, 64, seed=11, preempted=True) == alone
    assert outputs(0, 64, seed=12) != alone


def test_end_of_sequence_tokens_are_reported_unless_the_sequence_ignores_them(
    references: Any, expected: Any, driver: Any, open_engine: Any, tmp_path: Path
) -> None:
    folder = references("llama")[0]
    first = expected("llama")[2][0]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": [{first}, 0]}}')
    run = driver(open_engine(tmp_path))
    run.add(1, prompts()[2], Sampling(temperature=0))
    run.add(2, prompts()[2], Sampling(temperature=0, ignore_eos=True))
    run.run(1, 64)
    assert run.outputs == {1: [first], 2: [first]}
    assert run.ended == {1: [True], 2: [False]}


def test_rows_of_a_sequence_that_is_gone_disturb_nobody(expected: Any, driver: Any, open_engine: Any) -> None:
    engine = open_engine("llama")
    run = driver(engine)
    for sequence, prompt in enumerate(prompts()):
        run.add(sequence, prompt)
    run.run(4, 16)
    engine.forget([3])
    run.run(OUTPUTS, 16)
    assert [run.outputs[sequence] for sequence in (0, 1, 2, 4)] == [expected("llama")[row] for row in (0, 1, 2, 4)]
    assert len(run.outputs[3]) == OUTPUTS


def test_more_sequences_than_ever_before_find_room(expected: Any, driver: Any, open_engine: Any) -> None:
    run = driver(open_engine("llama", kv_pool_tokens=16384), in_flight=2)
    for sequence in range(150):
        run.add(sequence, prompts()[1])
    run.run(5, 64, max_prefills=16)
    assert set(map(tuple, run.outputs.values())) == {tuple(expected("llama")[1][:5])}


def test_a_step_of_releases_only_has_no_tokens(open_engine: Any) -> None:
    engine = open_engine("llama")
    none, integers = np.zeros(0, np.int64), np.zeros(0, np.int32)
    engine.launch(Step(7, none, integers, integers, np.zeros(0, np.bool_), integers, integers, [], [5]))
    output = engine.collect()
    assert (output.step, len(output.tokens), len(output.ended)) == (7, 0, 0)


@pytest.mark.parametrize(("num_tokens", "num_blocks", "named"), [(9, 1, "tokens"), (5, 0, "KV blocks")])
def test_a_row_beyond_its_tokens_or_blocks_is_an_error(
    num_tokens: int, num_blocks: int, named: str, open_engine: Any
) -> None:
    engine = open_engine("llama")
    start = SequenceStart(4, np.arange(3, 8, dtype=np.int32).tobytes(), 5, Sampling())
    ones = np.ones(1, np.int32)
    step = Step(
        1,
        np.array([4]),
        0 * ones,
        num_tokens * ones,
        np.array([True]),
        num_blocks * ones,
        np.zeros(num_blocks, np.int32),
        [start],
        [],
    )
    with pytest.raises(EngineError, match=f"row 0 of the step reaches beyond the {named} its sequence has"):
        engine.launch(step)


def test_collecting_what_was_not_launched_is_an_error(open_engine: Any) -> None:
    engine = open_engine("llama")
    with pytest.raises(RuntimeError, match="no step was launched"):
        engine.collect()


def test_logits_are_those_of_transformers(references: Any, open_engine: Any, driver: Any, monkeypatch: Any) -> None:
    import torch

    folder, model = references("mistral")
    engine = open_engine(folder)
    prompt = prompts((300,))[0]
    seen = []
    head = engine._model.logits

    def watched(*arguments: Any) -> Any:
        seen.append(head(*arguments))
        return seen[-1]

    monkeypatch.setattr(engine._model, "logits", watched)
    for chunk in (1, 7, 16, 300):
        run = driver(engine)
        run.add(1, prompt)
        run.run(1, chunk)
        engine.forget([1])
        with torch.no_grad():
            wanted = model(torch.tensor([prompt])).logits[0, -1]
        assert (seen[-1][0] - wanted).abs().max() < 1e-4
