"""Processes that end, stop or loop under `fairlead up`, as an operator sees it."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from deployed import House, fairlead

LIMIT_S = 60
DEPLOYMENT = """
http: {gateways: 2, drain_s: 1}
engine: {kind: paced, paced_step_s: 0.002}
supervision: {silence_s: 2, crashes: 1}
telemetry: {metrics: {gateway: null, admission: null, scheduler: null, executor: null}}
"""


def until(holds: Callable[[], object], house: House) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline, house.text
        time.sleep(0.02)  # it happens in other processes


def hurt(house: House, process: str, number: signal.Signals) -> None:
    """Send a signal to a process and wait until another one has taken its place."""
    before = house.pid(process)
    assert before is not None
    os.kill(before, number)
    until(lambda: house.pid(process) not in (None, before), house)


@pytest.mark.slow
def test_what_stops_is_killed_what_loops_is_given_up_and_the_state_is_said(
    house: Callable[..., House], tmp_path: Path
) -> None:
    deployment = tmp_path / "deployment.yaml"
    deployment.write_text(DEPLOYMENT)
    running = house("--deployment", str(deployment))
    data = ("--data-dir", str(running.data))

    hurt(running, "executor", signal.SIGSTOP)
    assert "executor has given no sign of life for 2 s: it is stopped or stuck; killing it" in running.text
    assert "executor ended: it gave no sign of life for 2 s and was killed" in running.text
    until(lambda: running.pid("gateway") and running.pid("gateway-2"), running)

    # One gateway of two: the other serves on, and somebody may try again.
    hurt(running, "gateway-2", signal.SIGKILL)
    assert "gateway-2 ended: signal 9, Killed" in running.text
    os.kill(running.pid("gateway-2") or 0, signal.SIGKILL)
    until(
        lambda: "the others serve without gateway-2; `fairlead restart gateway-2` tries again" in running.text, running
    )
    assert "gateway-2 ended 2 times within 60 s of work and is not started again" in running.text
    assert running.get("/readyz")["ready"]
    again = fairlead("restart", "gateway-2", *data)
    assert re.fullmatch(
        r"restarting gateway-2 \(1 of 1\)\ngateway-2 is ready after .* s; no request waited for it\nrestarted\n",
        again.stdout,
    )
    assert running.pid("gateway-2") is not None
    unknown = fairlead("restart", "gatewy", *data, check=False)
    assert unknown.returncode == 1
    assert "there is no gatewy here; there are: executor, scheduler, admission, gateway, gateway-2" in unknown.stderr

    # The only executor: nothing can be served, so nothing pretends to.
    os.kill(running.pid("executor") or 0, signal.SIGKILL)
    assert running.process is not None
    assert running.process.wait(LIMIT_S) == 1
    last = running.text.splitlines()[-1]
    assert last.startswith(
        "fairlead: nothing can be served without executor: executor ended 2 times within 60 s of work"
    )
    nobody = fairlead("restart", *data, check=False)
    assert nobody.returncode == 2
    assert "no `fairlead up` runs here" in nobody.stderr
