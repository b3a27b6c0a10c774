"""`fairlead policy plan` on traffic that a simulated deployment recorded."""

import json
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from policies.commands import StartStep
from policies.events import StepEnded
from policies.simulation.driver import SCHEDULER, Simulation
from policies.simulation.executor_model import Device, FloorLinear
from policies.simulation.step_shape import shape_of
from policies.simulation.workload import synthetic
from services import policy_prediction
from services.cli import main
from services.revisions import Revisions
from services.settings import STARTED, Deployment, TrafficSettings
from services.traffic import gaps, rows
from services.traffic.store import open_store
from services.troubles import Troubles

POLICIES = Path(__file__).resolve().parents[2] / "policies"
SLAI, FASTERTRANSFORMER = POLICIES / "slai.yaml", POLICIES / "fastertransformer.yaml"
DEVICE = Device("a small one", 100, 16, 512, FloorLinear(0.02, 0.005, 1e-4, 1e-7))


def write(data: Path, *, duration_s: float = 30.0, steps: bool = True, revision: int = 1) -> int:
    """Record a simulated run as the services would; returns how many requests it had."""
    planned, samples = {}, []

    def observe(core, now, event, commands) -> None:
        if core == SCHEDULER and isinstance(event, StepEnded):
            at, shape = planned[event.step]
            samples.append(rows.StepRow(time.time(), 0, *shape, at, now - event.step_time_s, now, now))
        for command in commands:
            if isinstance(command, StartStep):
                planned[command.step] = now, shape_of(command.plan)

    workload = synthetic("chat", qps=3.0, duration_s=duration_s, seed=2, max_sequence_tokens=512)
    outcome = Simulation(SLAI.read_bytes(), workload, DEVICE, observer=observe).run()
    settings = TrafficSettings()
    gateway = open_store(str(data), rows.GATEWAY, (rows.REQUESTS,), settings, Troubles())
    scheduler = open_store(str(data), rows.SCHEDULER, (rows.STEPS, rows.FLEETS), settings, Troubles())
    began = time.time() - 100
    for number, served in enumerate(outcome.served, start=1):
        asked = served.asked
        seconds = outcome.gaps.seconds[outcome.gaps.requests == number]
        stamps = np.cumsum(np.concatenate([[0], np.rint(seconds * 1e9).astype(np.int64)]))
        row = rows.RequestRow(
            *(began + asked.arrived_at_s, asked.tenant, asked.tier, 1.0, None, "", served.slo_class),
            *(asked.prompt_tokens, asked.declared_tokens, 1, served.output_tokens, "finished", ""),
            *(served.first_token_at_s - asked.arrived_at_s, gaps.pack([stamps]), 0, b"", revision),
        )
        gateway.add(rows.REQUESTS, row)
    scheduler.add(rows.FLEETS, rows.FleetRow(began, 1, "a small one", 100, 16, 512, 2, copies_blocks=True))
    for sample in samples if steps else ():
        scheduler.add(rows.STEPS, sample)
    gateway.close()
    scheduler.close()
    return len(workload)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rows, "STEPS", rows.STEPS._replace(most_per_flush=10**6))
    folder = tmp_path / "data"
    folder.mkdir()
    policy = tmp_path / "policy.yaml"
    policy.write_bytes(SLAI.read_bytes())
    deployment = Deployment(data=str(folder), policy=str(policy)).resolved()
    (folder / STARTED).write_bytes(msgspec.json.encode(deployment))
    Revisions(str(folder)).began(1, "slai", SLAI.read_bytes())
    return folder


def plan(data: Path, *arguments: str | Path) -> int:
    return main(["policy", "plan", *map(str, arguments), "--data-dir", str(data)])


async def test_a_worse_policy_is_predicted_to_be_worse_with_the_replays_own_error(data, capsys) -> None:
    num_requests = write(data)
    assert plan(data, FASTERTRANSFORMER, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert "name: slai -> fastertransformer" in document["changes"]
    prediction = document["prediction"]
    lines = {(line["group"], line["metric"]): line for line in prediction["lines"]}
    for metric in ("TTFT p50", "TTFT p99", "TBT p50", "TBT p99", "goodput"):
        assert abs(lines["everyone", metric]["error"]) < 0.05, lines["everyone", metric]
    worse = lines["everyone", "TTFT p50"]
    assert (worse["verdict"], worse["change"] > 1) == ("worse", True)
    assert {"class paid", "class free", "tenant acme", "tenant globex"} <= {group for group, _ in lines}
    basis = prediction["basis"]
    assert (basis["executor"], basis["num_executors"], basis["num_of_other_policies"]) == ("a small one", 1, 0)
    assert basis["num_requests"] == prediction["now"]["requests"]["finished"] == num_requests
    assert basis["step_error"] < 0.02

    page = data / "page.html"
    assert plan(data, FASTERTRANSFORMER, "--html", page) == 0
    out = capsys.readouterr().out
    assert "revision 1 (slai) to " in page.read_text()
    for text in ("What changes", "class paid: TTFT p99", "replay fastertransformer", "Time between tokens", "plotly"):
        assert text in page.read_text()
    assert plan(data, FASTERTRANSFORMER, "--html", data / "no" / "page.html") == 2
    assert "page.html: cannot be written: No such file or directory" in capsys.readouterr().err
    assert out.startswith(f"from revision 1 (slai) to {FASTERTRANSFORMER} (fastertransformer):\n  ")
    assert f"Replayed: {num_requests} requests of 60 s up to " in out
    header = next(line for line in out.splitlines() if "recorded" in line)
    assert header.split() == [
        "recorded",
        "replay",
        "slai",
        "replay",
        "fastertransformer",
        "change",
        "replay's",
        "error",
    ]
    assert out.splitlines()[-1].startswith("  goodput")


async def test_the_policy_in_force_changes_nothing_whatever_was_recorded(data, capsys) -> None:
    num_requests = write(data, revision=7)
    assert plan(data, "1", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["changes"] == []
    assert {line["change"] for line in document["prediction"]["lines"]} <= {0, None}
    assert document["prediction"]["basis"]["num_of_other_policies"] == num_requests


async def test_only_the_window_is_replayed_and_of_that_the_newest(data, capsys, monkeypatch) -> None:
    num_requests = write(data)
    assert plan(data, SLAI, "--window", "15s", "--json") == 0
    fewer = json.loads(capsys.readouterr().out)["prediction"]["basis"]["num_requests"]
    assert num_requests / 4 < fewer < num_requests * 3 / 4
    monkeypatch.setattr(policy_prediction, "MOST_REQUESTS", 25)
    assert plan(data, SLAI, "--json") == 0
    basis = json.loads(capsys.readouterr().out)["prediction"]["basis"]
    assert (basis["num_requests"], basis["num_older"]) == (25, num_requests - 25)


async def test_what_is_missing_for_a_prediction_is_said_and_the_changes_are_too(data, capsys) -> None:
    assert plan(data, FASTERTRANSFORMER) == 1
    out, err = capsys.readouterr()
    assert "name: slai -> fastertransformer" in out
    assert "0 requests with an output are recorded in the window, a prediction needs 20" in err
    write(data, duration_s=8, steps=False)
    assert plan(data, FASTERTRANSFORMER, "--json") == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["prediction"], document["reason"] in err) == (None, True)
    assert "step times cannot be fitted: 0 measured steps" in err


@pytest.mark.parametrize("window", ["1", "0s", "5 m", "-1h", "1w"])
def test_a_window_that_is_no_duration_is_refused(data, capsys, window) -> None:
    with pytest.raises(SystemExit):
        plan(data, SLAI, f"--window={window}")
    assert f"{window} is no duration; a number above 0 and s, m, h or d, such as 90s or 1h" in capsys.readouterr().err
