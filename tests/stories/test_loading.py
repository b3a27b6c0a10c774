"""An executor that ends while it loads its model."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from deployed import ROOT, free_port

from engine.demo import CHECKPOINT

LIMIT_S = 90


def up(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    deployment = folder / "deployment.yaml"
    ports = "telemetry: {metrics: {gateway: null, admission: null, scheduler: null, executor: null}}\n"
    deployment.write_text(f"supervision: {{crashes: 1}}\nrun: {folder}/run\n{ports}")
    command = [sys.executable, "-m", "services.cli", "up", "--data-dir", str(folder / "data"), "--port"]
    return subprocess.Popen(
        [*command, str(free_port()), "--deployment", str(deployment), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_damaged_weights_end_the_start_with_the_reason(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in CHECKPOINT.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (weights,) = model.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    with up(tmp_path, "--model", str(model)) as started:
        said, _ = started.communicate(timeout=LIMIT_S)
    assert started.returncode == 1
    last = said.splitlines()[-1]
    assert last.startswith("fairlead: executor ended while starting: ")
    assert str(weights) in last


@pytest.mark.slow
def test_an_executor_that_is_killed_while_it_loads_is_started_again_and_given_up_when_that_goes_on(
    tmp_path: Path,
) -> None:
    with up(tmp_path) as started:
        killed: set[int] = set()
        deadline = time.monotonic() + LIMIT_S
        while len(killed) < 2 and time.monotonic() < deadline:
            for pid in executors_of(started.pid) - killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            time.sleep(0.01)
        said, _ = started.communicate(timeout=LIMIT_S)
    assert started.returncode == 1
    assert "executor ended: signal 9, Killed" in said
    assert "starting it again" in said
    assert said.splitlines()[-1].startswith("fairlead: nothing can be served without executor: executor ended 2 times")


def executors_of(supervisor: int) -> set[int]:
    """Its children whose command line says so."""
    found = set()
    for pid in (Path("/proc") / str(supervisor) / "task" / str(supervisor) / "children").read_text().split():
        try:
            command = (Path("/proc") / pid / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"executor" in command:
            found.add(int(pid))
    return found
