"""The GPU's benchmark runs from end to end on a CPU with a tiny model: its figures mean nothing then, its checks do."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ops.bench import harness
from services.cli import main


@pytest.mark.filterwarnings("ignore")
def test_every_part_runs_and_the_tokens_are_those_of_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results" / "smoke.json"
    arguments = ["bench", "engine", "--smoke", "--rounds", "2", "--json", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["fairlead", *arguments])
    assert main(arguments) == 1  # no tiny model on a CPU reaches a GPU's goals
    printed = json.loads(capsys.readouterr().out)
    assert [row["metric"] for row in printed] == [
        "generation, 4 rows, against transformers",
        "greedy tokens as transformers'",
        "likeliest tokens as float32, against theirs",
        "decode, 1 rows, against the roofline",
        "decode, 4 rows, against the roofline",
        "prefill, 16 tokens, against matmul",
        "two steps in flight against one",
    ]
    assert all(row["ours"] > 0 and row["reference"] > 0 for row in printed)
    assert [row["ours"] for row in printed[1:3]] == [1.0, 1.0]
    written = json.loads(out.read_text())
    assert written["rows"] == printed
    assert printed[0]["note"].startswith("transformers ran as ('sdpa', {'page_size': 256")
    assert written["command"] == f"fairlead {' '.join(arguments)}"
    assert written["hardware"]["cores"] >= 1
    assert {"torch", "transformers", "python"} <= set(written["versions"])


@pytest.mark.parametrize("options", [["--device", "cuda"], ["--device", "cuda", "--smoke"]])
def test_without_a_gpu_one_sentence_says_that_nothing_was_measured(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "rows.json"
    assert main(["bench", "engine", *options, "--out", str(out)]) == 2
    assert capsys.readouterr() == (
        "",
        "bench: --device cuda: this machine has no CUDA device that torch can use; nothing was measured\n",
    )
    assert not out.exists()


def test_a_step_of_the_8b_model_reads_what_its_geometry_says(tmp_path: Path) -> None:
    from ops.bench.random_model import QWEN3_8B, describe, sizes

    found = sizes(describe(tmp_path, QWEN3_8B), 2)
    assert found.weight_bytes / 1e9 == pytest.approx(15.14, abs=0.01)
    assert found.kv_bytes == 144 * 1024
    assert found.token_operations / 1e9 == pytest.approx(2 * 6.95, abs=0.02)  # 8.19e9 but for embedding and head
    assert found.context_operations == 4 * 36 * 32 * 128


def test_random_weights_follow_from_their_names(tmp_path: Path) -> None:
    import torch

    from ops.bench.random_model import SPREAD, RandomCheckpoint

    first, second = (RandomCheckpoint(tmp_path, torch.float32, torch.device("cpu")) for _ in range(2))
    assert (first.tensor("a.weight", 300, 40) == second.tensor("a.weight", 300, 40)).all()
    assert (first.tensor("a.weight", 300, 40) != second.tensor("b.weight", 300, 40)).any()
    assert first.tensor("a.weight", 300, 40).std().item() == pytest.approx(SPREAD, rel=0.05)
    assert (first.tensor("norm.weight", 7) == 1).all()


def test_a_gap_is_from_a_steps_copy_to_the_host_to_whatever_comes_next() -> None:
    from ops.bench.engine_driver import boundary_gaps

    activities = [
        ("Memcpy DtoH (Device -> Pinned)", 10.0, 11.0),
        ("kernel", 0.0, 10.0),
        ("Memcpy HtoD (Pinned -> Device)", 13.0, 14.0),
        ("kernel", 14.0, 20.0),
        ("Memcpy DtoH (Device -> Pinned)", 20.0, 21.0),
        ("kernel", 20.5, 30.0),  # of another stream: no gap
        ("Memcpy DtoH (Device -> Pinned)", 30.0, 31.0),
    ]
    assert boundary_gaps(activities) == ([2.0, 0.0], [10.0, 10.0])


def test_tokens_are_compared_until_the_first_that_differs() -> None:
    from ops.bench.engine_cuda import leading_share

    ours = np.array([[1, 2, 3, 4], [1, 2, 3, 4]])
    theirs = np.array([[1, 2, 3, 4], [1, 9, 3, 4]])
    assert leading_share(ours, theirs) == (1 + 0.25) / 2


def test_on_a_gpu_flash_attention_graphs_and_overlap_are_tried_and_left_out() -> None:
    import torch

    from ops.bench.transformers_peer import ways

    tried = ways(torch.device("cuda"), 64, 1152)
    assert len(tried) == len({str(way) for way in tried}) == 12
    assert all(options["num_blocks"] * options["page_size"] >= 64 * 1152 for _, options in tried)


def test_a_way_that_does_not_work_is_left_out_and_said() -> None:
    import torch

    from ops.bench.transformers_peer import Peer

    class Model:
        def destroy_cached_continuous_batching_manager(self) -> None: ...

        def set_attn_implementation(self, name: str) -> None:
            raise ImportError(f"{name} is not\ninstalled")

    peer = Peer(Model(), np.zeros((1, 4), np.int32), 2, torch.device("cpu"))
    with pytest.raises(harness.UnmeasurableError, match=r"does not run here: .*; sdpa did not: sdpa is not installed"):
        peer.tune()


def test_the_gap_is_a_median_over_the_last_steps_of_what_the_device_did(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    from ops.bench import engine_cuda

    def event(name: str, start: float, end: float, device: Any = torch.autograd.DeviceType.CUDA) -> Any:
        return SimpleNamespace(name=name, device_type=device, time_range=SimpleNamespace(start=start, end=end))

    class Profile:
        def __init__(self, activities: Any) -> None: ...

        def __enter__(self) -> Any:
            steps = range(0, 1000, 10)
            copies = [event("Memcpy DtoH (Device -> Pinned)", step + 8.0, step + 9.0) for step in steps]
            kernels = [event("kernel", float(step), step + 7.0) for step in steps]
            host = [event("launch", 3.0, 900.0, torch.autograd.DeviceType.CPU)]
            return SimpleNamespace(events=lambda: [*copies, *kernels, *host])

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(engine_cuda, "profile", Profile)
    bench = engine_cuda.Bench(tmp_path, engine_cuda.SMOKE, torch.device("cpu"), 2)
    assert bench._gap_us(2) == (1.0, 10.0)
