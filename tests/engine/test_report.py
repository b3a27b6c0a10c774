"""What the engine says of a checkpoint and a machine before it loads anything."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from engine import memory, torch_engine
from engine.finding import Finding
from engine.interface import EngineSettings
from engine.load import load_engine
from engine.report import describe

SETTINGS = EngineSettings(device="cpu", threads=1, kv_pool_tokens=1600)


def findings(folder: Path, **changes: Any) -> list[Finding]:
    settings = EngineSettings(**{"device": "cpu", "threads": 1, "kv_pool_tokens": 1600, **changes})
    return list(describe(folder, settings))


def test_a_report_says_what_the_engine_then_does(demo: Path) -> None:
    said = {finding.subject: finding for finding in reversed(findings(demo))}
    assert not any(finding.obstacle for finding in said.values())
    info = load_engine(demo, SETTINGS).info
    assert said["attention"].verdict == info.attention
    assert said["weights"].reason == f"{info.num_parameters:,} parameters"
    assert said["kv pool"].verdict == f"{info.num_blocks * info.block_tokens:,} tokens, {memory.amount(info.kv_bytes)}"
    assert said["kv pool"].reason == f"bounded by {info.kv_bound}"
    assert (said["device"].verdict, said["dtype"].verdict, said["threads"].verdict) == ("cpu", "float32", "1")
    assert said["model"].verdict.startswith(info.architecture)


def test_every_attention_backend_that_was_not_chosen_has_its_reason(demo: Path) -> None:
    against = [finding for finding in findings(demo) if finding.verdict.startswith("not ")]
    assert {finding.verdict: finding.reason for finding in against}["not xformers_splitk"].startswith("it needs a cuda")
    assert all(finding.reason for finding in against)


def test_a_checkpoint_that_would_not_load_is_an_obstacle(demo: Path, tmp_path: Path) -> None:
    for file in demo.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    *_, last = findings(tmp_path)
    assert last.obstacle
    assert "tensor lm_head.weight is missing" in last.reason


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"device": "cuda:77"}, "engine.device: cuda:77 is not there"),
        ({"attention": "xformers_splitk"}, "engine.attention: xformers_splitk cannot be used"),
        ({"kv_pool_tokens": 10**10}, "too much; lower engine.kv_pool_tokens"),
        ({"max_sequence_tokens": 10**6}, "engine.max_sequence_tokens: 1000000 is more than the 8192 positions"),
    ],
)
def test_settings_that_cannot_be_met_are_obstacles(changes: dict[str, Any], sentence: str, demo: Path) -> None:
    *_, last = findings(demo, **changes)
    assert last.obstacle
    assert sentence in last.reason


def test_a_model_larger_than_memory_is_an_obstacle(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "free_on_host", lambda: memory.Free(2**20, "in a test"))
    *_, last = findings(demo)
    assert last.obstacle
    assert "1.00 MiB are free in a test" in last.reason
