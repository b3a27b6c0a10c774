"""A gateway process that may have few files open, and then none more: nobody waits, the log says so, and it is over."""

import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from services.gateway.door import KEPT
from services.settings import DEPLOYMENT_VARIABLE, Deployment, HttpSettings, MetricsSettings, TelemetrySettings
from services.setup import prepare

ROOT = Path(__file__).resolve().parents[3]
LIMIT = 256
WAIT_S = 60.0
QUESTION = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


class Gateway:
    """A process with a limit; nobody is behind it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        http = HttpSettings(port=self.port)
        telemetry = TelemetrySettings(tokens=False, metrics=MetricsSettings(gateway=None))
        policy = str(ROOT / "policies" / "slai.yaml")
        deployment = Deployment(policy=policy, data=str(folder), http=http, telemetry=telemetry).resolved()
        prepare(deployment)
        named = folder / "given.json"
        named.write_bytes(msgspec.json.encode(deployment))
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.cli", "serve", "gateway"],
                cwd=ROOT,
                env={**os.environ, DEPLOYMENT_VARIABLE: str(named)},
                stderr=log,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT)),  # noqa: PLW1509
            )

    def until(self, holds: Callable[[], bool]) -> None:
        end_s = time.monotonic() + WAIT_S
        while not holds():
            assert time.monotonic() < end_s, self.log.read_text()
            time.sleep(0.02)

    def connect(self) -> socket.socket:
        client = socket.socket()
        client.settimeout(WAIT_S)
        with suppress(ConnectionError):
            client.connect(("127.0.0.1", self.port))
        return client

    def answer(self) -> bytes:
        """How the one to a client who comes and goes begins; nothing where there is none."""
        with self.connect() as client:
            return ask(client)

    def largest(self) -> int:
        """Number of the descriptors that it has."""
        return max(int(entry.name) for entry in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def may_open(self, number: int) -> None:
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (number, LIMIT))

    def said(self, sentence: str) -> int:
        return len(re.findall(sentence, self.log.read_text()))


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    started = Gateway(tmp_path)
    try:
        yield started
    finally:
        started.process.terminate()
        started.process.wait(WAIT_S)


def ask(client: socket.socket) -> bytes:
    try:
        client.sendall(QUESTION)
        return client.recv(12)
    except OSError:
        return b""


def test_a_gateway_without_descriptors_turns_away_says_so_once_and_serves_again(gateway: Gateway) -> None:
    gateway.until(lambda: gateway.answer() == b"HTTP/1.1 200")
    largest = gateway.largest()
    clients = [gateway.connect() for _ in range(LIMIT)]
    answers = [ask(client) for client in clients]
    # The first one, which found out that it serves, may still be leaving.
    assert LIMIT - KEPT - 1 <= answers.count(b"HTTP/1.1 200") <= LIMIT - KEPT
    assert set(answers) <= {b"HTTP/1.1 200", b"HTTP/1.1 503", b""}
    assert gateway.said("128 clients are connected, as many as may be: others are turned away") == 1
    for client in clients:
        client.close()
    # Not before they have all left: the limit is a number of a descriptor, and those of the last are high.
    gateway.until(lambda: gateway.largest() <= largest)
    gateway.until(lambda: gateway.answer() == b"HTTP/1.1 200")

    gateway.may_open(largest + 4)
    clients = [gateway.connect() for _ in range(16)]
    assert [ask(client) for client in clients][-4:] == [b""] * 4
    gateway.until(lambda: gateway.said("files are open, as many as may be: who connects is cut off until") == 1)
    for client in clients:
        client.close()
    gateway.until(lambda: gateway.said("files can be opened again") == 1)
    assert gateway.answer() == b"HTTP/1.1 200"
