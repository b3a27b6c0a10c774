"""The CPU's benchmark runs from end to end on few short sequences: its figures mean nothing then, its checks do."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

from ops.bench import engine_cpu
from ops.bench.harness import UnmeasurableError


def test_engines_are_compared_on_equal_tokens_and_the_services_carry_all() -> None:
    rows = engine_cpu.run(Namespace(rounds=2, dtype="float32", smoke=True))
    assert [row.metric for row in rows] == [
        "engine_float32_vs_transformers_static",
        "engine_float32_memory_growth",
        "served_float32_vs_engine",
    ]
    assert all(row.ours > 0 and row.reference > 0 for row in rows)


def test_without_llama_cpp_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine_cpu, "LLAMA_CPP_PYTHON", tmp_path / "python")
    with pytest.raises(UnmeasurableError, match=r"is not there: run ops/bench/peers/install.sh, which takes minutes"):
        engine_cpu.run(Namespace(rounds=2, dtype="float32", smoke=False))


def test_other_tokens_void_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = object.__new__(engine_cpu.Bench)
    bench._prompts, bench._num_outputs, bench._answer = [[1], [2]], 3, {"tokens": [[1, 2, 3], [4, 5, 6]]}
    engine = object.__new__(engine_cpu.Engine)
    monkeypatch.setattr(engine, "run", lambda: json.loads('{"seconds": 2, "tokens": [[1, 2, 3], [4, 5, 7]]}'))
    bench._dtype = "bfloat16"
    assert bench._round(engine, exact=True) == 3
    bench._dtype = "float32"
    assert bench._round(engine, exact=False) == 3
    with pytest.raises(RuntimeError, match="this run is void: 1 of 2 sequences have other tokens"):
        bench._round(engine, exact=True)
