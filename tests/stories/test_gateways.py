"""Several gateways on one port: whoever connects is served, also while one of them starts again."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from deployed import House

DEPLOYMENT = """
http: {gateways: 2}
engine: {kind: paced, paced_step_s: 0.002}
telemetry: {metrics: {gateway: null, admission: null, scheduler: null, executor: null}}
"""


@pytest.fixture
def running(house: Callable[..., House], tmp_path: Path) -> House:
    deployment = tmp_path / "deployment.yaml"
    deployment.write_text(DEPLOYMENT)
    return house("--deployment", str(deployment))


def ready(house: House) -> set[str]:
    return {path.stem for path in house.run_folder.glob("gateway*.ready")}


@pytest.mark.slow
def test_no_connection_is_refused_while_a_gateway_or_all_of_them_start_again(running: House) -> None:
    assert ready(running) == {"gateway", "gateway-2"}
    both = [running.pid("gateway"), running.pid("gateway-2")]
    for pid in both:
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
    with socket.create_connection(("127.0.0.1", running.port)) as waiting:
        waiting.sendall(b"GET /healthz HTTP/1.1\r\nhost: here\r\n\r\n")
        for pid in both:
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        # Nobody accepted it: it waited for the gateways that came after them.
        waiting.settimeout(60)
        assert waiting.recv(100).startswith(b"HTTP/1.1 200 ")
    assert running.stop() == 0, running.text
