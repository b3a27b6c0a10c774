"""On a CPU in fp32 a sequence has the same logits to the last bit, in any company and however it is chunked."""

from typing import Any

import numpy as np
import pytest

from engine import native
from engine.interface import Sampling

OUTPUTS = 40


def prompt(length: int, seed: int) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(3, 199, length).tolist()
    return tokens


@pytest.fixture
def traced(driver: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`traced(engine, length, mates, chunk, preempted)`: logits [outputs, vocabulary] and tokens of one sequence."""
    import torch

    def trace(engine: Any, length: int, mates: int, chunk: int, *, preempted: bool = False) -> Any:
        seen: dict[int, Any] = {}
        head = engine._model.logits

        def watched(hidden: Any, sampled: Any) -> Any:
            logits = head(hidden, sampled)
            rows = [s for s, num_tokens in planned[-1].items() if run.known(s) <= before[-1][s] + num_tokens]
            if 0 in rows:
                seen[len(run.outputs[0])] = logits[rows.index(0)].clone()
            return logits

        run = driver(engine)
        planned: list[dict[int, int]] = []
        before: list[dict[int, int]] = []
        step = run.step

        def noted(rows: dict[int, int]) -> None:
            planned.append(rows)
            before.append(dict(run._positions))
            step(rows)

        run.step = noted
        lengths = np.random.default_rng(9).integers(1, 2 * length, mates).tolist()
        run.add(0, prompt(length, 0), Sampling(temperature=0.8, seed=3, ignore_eos=True))
        for mate, tokens in enumerate(lengths, 1):
            run.add(mate, prompt(tokens, mate), Sampling(temperature=mate % 2, seed=mate, ignore_eos=True))
        with monkeypatch.context() as patch:
            patch.setattr(engine._model, "logits", watched)
            for _ in range(2 if preempted else 0):
                run.run(len(run.outputs[0]) + 11, chunk, max_prefills=4)
                run.preempt(0)
            run.run(OUTPUTS, chunk, max_prefills=4)
        engine.forget(list(run.outputs))
        return torch.stack([seen[index] for index in range(OUTPUTS)]), run.outputs[0]

    return trace


@pytest.mark.parametrize(("length", "threads"), [(50, 1), (365, 2)])  # crosses from one width of keys to the next
def test_logits_of_the_demo_are_the_same_bits_in_any_company_and_chunking(
    length: int, threads: int, demo: Any, open_engine: Any, traced: Any
) -> None:
    engine = open_engine(demo, threads=threads, kv_pool_tokens=65536)
    logits, tokens = traced(engine, length, 0, 512)
    for mates, chunk, preempted in ((0, 1, False), (0, 7, False), (2, 16, False), (63, 512, False), (3, 33, True)):
        others, same = traced(engine, length, mates, chunk, preempted=preempted)
        case = f"{mates} mates, chunks of {chunk}, preempted: {preempted}"
        assert (others == logits).all(), case
        assert same == tokens, case


@pytest.mark.parametrize("variant", ["llama_bias_mha_tied", "mistral", "qwen2_windows", "qwen3"])
def test_logits_of_every_architecture_are_the_same_bits(variant: str, open_engine: Any, traced: Any) -> None:
    engine = open_engine(variant, kv_pool_tokens=16384)
    logits, _ = traced(engine, 100, 0, 512)
    for mates, chunk, preempted in ((0, 1, False), (0, 7, False), (2, 16, False), (30, 64, True)):
        others, _ = traced(engine, 100, mates, chunk, preempted=preempted)
        assert (others == logits).all(), f"{mates} mates, chunks of {chunk}, preempted: {preempted}"


def test_logits_are_the_same_bits_without_the_library_of_kernels(
    open_engine: Any, traced: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "locate", lambda: native.Located(None, "", "not built"))
    engine = open_engine("qwen3", kv_pool_tokens=16384)
    assert engine.info.attention == "cpu_gather"
    logits, _ = traced(engine, 100, 0, 512)
    for mates, chunk, preempted in ((0, 1, False), (0, 7, False), (30, 64, True)):
        others, _ = traced(engine, 100, mates, chunk, preempted=preempted)
        assert (others == logits).all(), f"{mates} mates, chunks of {chunk}, preempted: {preempted}"


def test_tokens_of_a_crowd_are_those_of_each_alone(demo: Any, open_engine: Any, driver: Any) -> None:
    engine = open_engine(demo, threads=2, kv_pool_tokens=65536)
    lengths = np.random.default_rng(1).integers(1, 300, 16).tolist()
    samplings = [Sampling(temperature=(0, 0.8)[index % 2], seed=index, ignore_eos=True) for index in range(16)]
    crowd = driver(engine, in_flight=2)
    for sequence, length in enumerate(lengths):
        crowd.add(sequence, prompt(length, sequence), samplings[sequence])
    crowd.run(OUTPUTS, 64, max_prefills=3)
    engine.forget(list(crowd.outputs))
    for sequence, length in enumerate(lengths):
        alone = driver(engine)
        alone.add(sequence, prompt(length, sequence), samplings[sequence])
        alone.run(OUTPUTS, 512)
        engine.forget([sequence])
        assert alone.outputs[sequence] == crowd.outputs[sequence]
