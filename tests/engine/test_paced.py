"""The synthetic engine keeps its pace and repeats itself."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.interface import EngineSettings, Sampling
from engine.load import load_engine
from engine.paced import PacedEngine


def paced(step_s: float = 0.0) -> PacedEngine:
    return PacedEngine(EngineSettings(kind="paced", paced_step_s=step_s), 1000, 4096)


def test_tokens_follow_from_seed_and_position(driver: Any) -> None:
    outputs = []
    for chunk, in_flight, seed in ((3, 1, 5), (64, 2, 5), (64, 2, 6)):
        run = driver(paced(), in_flight)
        run.add(7, list(range(20)), Sampling(seed=seed))
        run.run(30, chunk)
        outputs.append(run.outputs[7])
    assert outputs[0] == outputs[1] != outputs[2]
    assert len(set(outputs[0])) > 25
    assert all(0 <= token < 1000 for token in outputs[0])
    assert not any(run.ended[7])


def test_steps_end_at_the_pace_whenever_they_are_collected(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [10**9]
    monkeypatch.setattr(time, "monotonic_ns", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + round(seconds * 1e9)))
    run = driver(paced(0.02), in_flight=2)
    run.add(1, [1])
    run.step({1: 1})
    clock[0] += 5_000_000  # the caller is busy for 5 ms; the second step still starts when the first is done
    run.step({1: 1})
    assert clock[0] == 10**9 + 20_000_000
    assert run.collect().computed_ns == 10**9 + 40_000_000


def test_it_needs_no_weights(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((demo / "config.json").read_bytes())
    info = load_engine(tmp_path, EngineSettings(kind="paced", kv_pool_tokens=4096)).info
    assert (info.num_blocks, info.vocabulary_size, info.max_sequence_tokens) == (256, 4096, 8192)


def test_collecting_what_was_not_launched_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no step was launched"):
        paced().collect()


def test_a_forgotten_sequence_still_has_some_token(driver: Any) -> None:
    engine = paced()
    run = driver(engine)
    run.add(1, [4, 5])
    run.run(2, 8)
    engine.forget([1])
    run.run(4, 8)
    assert np.array(run.outputs[1]).shape == (4,)


def test_log_probabilities_come_in_the_form_asked_for(driver: Any) -> None:
    run = driver(paced(), in_flight=2)
    run.add(1, [4], Sampling(seed=1, logprobs=3))
    run.add(2, [5], Sampling(seed=2))
    run.add(3, [6], Sampling(seed=3, logprobs=0))
    run.run(2, 8)
    assert list(run.logprobs) == [1, 3]
    for token, (own, *top) in zip(run.outputs[1], run.logprobs[1], strict=True):
        assert own == top[0] == (token, pytest.approx(np.log(0.5)))
        assert [value for _, value in top] == pytest.approx(np.log([0.5, 0.25, 0.125]).tolist())
        assert len({each for each, _ in top}) == 3
    assert [[each for each, _ in entries] for entries in run.logprobs[3]] == [[token] for token in run.outputs[3]]
