"""Several gateways on one port: whoever connects is served, also while one of them starts again, and told of all."""

import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from deployed import House, fairlead

NAMES = ("gateway", "gateway-2")
WAIT_S = 60
DEPLOYMENT = """
http: {gateways: 2}
engine: {kind: paced, paced_step_s: 0.002}
telemetry: {metrics: {gateway: null, admission: null, scheduler: null, executor: null}}
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("gateways")
    deployment = folder / "deployment.yaml"
    deployment.write_text(DEPLOYMENT)
    started = House(folder).start("--deployment", str(deployment))
    yield started
    started.stop()


def ready(house: House) -> set[str]:
    return {path.stem for path in house.run_folder.glob("gateway*.ready")}


class Reader:
    """A connection that is kept: whichever gateway took it answers all that is asked on it."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.connection = http.client.HTTPConnection("127.0.0.1", house.port, timeout=WAIT_S)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        key = self.house.key if body else (self.house.data / "admin.key").read_text().strip()
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self.connection.request("POST" if body else "GET", path, json.dumps(body) if body else None, headers)
        document: dict[str, Any] = json.load(self.connection.getresponse())
        return document

    def until(self, path: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """What is said as soon as it is as awaited; other processes make it so, so it can only be asked for."""
        end_s = time.monotonic() + WAIT_S
        while not holds(answer := self.ask(path)):
            assert time.monotonic() < end_s, f"{path} still answers {answer}"
            time.sleep(0.02)
        return answer

    def complete(self) -> str:
        body = {"model": "demo", "prompt": "import os", "max_tokens": 4, "ignore_eos": True}
        return str(self.ask("/v1/completions", body)["id"])

    def close(self) -> None:
        self.connection.close()


def each_gateway(house: House) -> dict[str, tuple[Reader, str]]:
    """By name, a connection to a gateway and a request that it served."""
    found: dict[str, tuple[Reader, str]] = {}
    for name, other in (NAMES, NAMES[::-1]):
        reader = accepted_without(house, other)
        served = reader.complete()
        story = reader.until(f"/v1/fairlead/requests/{served}", lambda answer: "gateway" in answer)
        assert story["gateway"] == name
        found[name] = reader, served
    return found


def accepted_without(house: House, stopped: str) -> Reader:
    """A connection that another gateway took than this one, which stands still for an instant."""
    pid = house.pid(stopped)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        reader = Reader(house)
        reader.ask("/v1/models")
    finally:
        os.kill(pid, signal.SIGCONT)
    return reader


@pytest.mark.slow
def test_whichever_gateway_is_asked_tells_of_the_requests_of_both(running: House) -> None:
    gateways = each_gateway(running)
    ids = {served for _, served in gateways.values()}
    for reader, _ in gateways.values():
        # A keeper gives way to who serves: on a busy machine it may answer too late for a while.
        recent = reader.until("/v1/fairlead/requests", lambda answer: answer.get("silent") == {})
        assert ids <= {line["id"] for line in recent["requests"]}
        for name, (_, served) in gateways.items():
            told = reader.until(f"/v1/fairlead/requests/{served}", lambda answer: "gateway" in answer)
            assert told["gateway"] == name
    for name, (_, served) in gateways.items():
        assert f"; by {name}; " in fairlead("explain", served, "--data-dir", str(running.data)).stdout
    for reader, _ in gateways.values():
        reader.close()


@pytest.mark.slow
def test_no_connection_is_refused_while_a_gateway_or_all_of_them_start_again(running: House) -> None:
    assert ready(running) == set(NAMES)
    both = [running.pid(name) for name in NAMES]
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
