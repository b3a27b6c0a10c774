"""A real Redis server of the test's own, on a socket in its folder."""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import redis

START_S = 10.0
KEPT = ("--appendonly", "yes", "--appendfsync", "always")


class RedisServer:
    """A redis-server process that can be frozen, killed and started again on the same data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{folder}/redis.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", "redis.sock", "--save", "", *KEPT],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert self.process.poll() is None, "redis-server ended"
            assert time.monotonic() < deadline, "redis-server did not start"

    def client(self, password: str | None = None) -> "redis.Redis":
        return redis.Redis(unix_socket_path=str(self.folder / "redis.sock"), password=password)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


@pytest.fixture(scope="session")
def one_redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.signal(signal.SIGKILL)


@pytest.fixture
def redis_server(one_redis_server: RedisServer) -> RedisServer:
    """An empty one."""
    with one_redis_server.client() as client:
        client.flushall()
    return one_redis_server


def certificate(folder: Path, name: str) -> Path:
    """A certificate of its own authority, for localhost; its key lies beside it."""
    made = folder / f"{name}.crt"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
    out = ["-keyout", str(made.with_suffix(".key")), "-out", str(made)]
    subprocess.run(["openssl", "req", *kind, *names, *out], check=True, capture_output=True)
    return made


class Guarded(NamedTuple):
    """A server that speaks TLS and wants a password."""

    url: str
    trusted: Path
    other: Path
    """Certificates: its own, and one of another authority."""


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    trusted, other = certificate(tmp_path, "trusted"), certificate(tmp_path, "other")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    files = ["--tls-cert-file", str(trusted), "--tls-key-file", str(trusted.with_suffix(".key"))]
    tls = ["--tls-port", str(port), *files, "--tls-ca-cert-file", str(trusted), "--tls-auth-clients", "no"]
    command = ["redis-server", "--port", "0", "--save", "", "--requirepass", "hunter2", *tls]
    server = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    yield Guarded(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs=", trusted, other)
    server.kill()
    server.wait()
