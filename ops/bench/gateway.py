"""CPU of the gateway for each streamed token at 512 streams, the whole path from frame to socket.

The real gateway process gets paced frames, one token for each stream, over its own Unix sockets; readers in another
process check that every stream carried exactly its text. References, fed the same frames: a raw asyncio.Protocol that
writes the same bytes (the floor), and FastAPI on uvicorn with a queue for each stream and a validated chunk object for
each token. CPU is user + system time of the server process between warm-up and the last paced frame.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec
import uvloop

from engine.demo import CHECKPOINT
from engine.tokenizer import Tokenizer
from ops.bench.harness import Row, at_least, at_most, interleave
from policies.commands import FinishReason
from policies.document.tenants import digest
from services.framing import encode_frame
from services.health import ready_file
from services.settings import REPOSITORY, Deployment, HttpSettings, child_environment
from services.transport import Identity, Listener, Stream, listen
from services.wire import Admitted, AnyMessage, Capacity, PolicyNow, Submit, TokenFrame

NUM_STREAMS = 512
WARMUP_STEPS = 20
MEASURED_STEPS = 150
STEP_S = 0.02
SETTLE_S = 0.05
WAIT_S = 60.0
KEY = "fl-benchmark"
SECRET = b"the secret of a benchmark"
WORDS = ("the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not")


class Server(Protocol):
    """A server process under measurement."""

    process: "subprocess.Popen[str]"
    port: int

    async def opened(self, streams: int) -> None:
        """Wait until that many streams are asked for."""

    def step(self, token: int, *, last: bool) -> None:
        """One token for each stream; with the last they end."""


def run(arguments: argparse.Namespace) -> list[Row]:
    """Measure both references; figures are microseconds of CPU for a token."""
    with (
        tempfile.TemporaryDirectory(prefix="fairlead-bench-") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        contextlib.ExitStack() as stack,
    ):
        bench = Bench(Path(folder), runner, stack)
        ours, floor, peer = bench.gateway(), bench.peer("raw"), bench.peer("fastapi")
        against_floor = interleave(lambda: bench.round(ours), lambda: bench.round(floor), rounds=arguments.rounds)
        against_peer = interleave(lambda: bench.round(ours), lambda: bench.round(peer), rounds=arguments.rounds)
    unit = "us CPU per token"
    return [
        at_most("gateway_cpu_per_token_vs_raw", unit, against_floor, must=1.5, stretch=1.2),
        at_least("gateway_cpu_per_token_vs_fastapi", unit, against_peer.inverted(), must=2.0, stretch=2.8),
    ]


class Bench:
    """The processes of one run and the loop that drives them."""

    def __init__(self, folder: Path, runner: asyncio.Runner, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._runner = runner
        self._stack = stack
        self._tokenizer = Tokenizer.load(CHECKPOINT)
        self._tokens = [self._tokenizer.encode(f" {word}")[0] for word in WORDS]
        self._readers = self._start(["-m", "ops.bench.readers"])

    def gateway(self) -> "Gateway":
        """The real thing."""
        deployment = Deployment(
            data=str(self._folder), run=str(self._folder / "run"), http=HttpSettings(port=_free_port())
        )
        (self._folder / "streams.secret").write_bytes(SECRET)
        (self._folder / "tenants.yaml").write_text(
            f"{{version: 1, tenants: [{{name: bench, keys: [{{id: one, sha256: {digest(KEY)}}}]}}]}}"
        )
        file = self._folder / "deployment.yaml"
        file.write_bytes(msgspec.yaml.encode(deployment))
        server = Gateway(deployment.http.port)
        self._runner.run(server.listen(self._folder / "run"))
        self._stack.callback(lambda: self._runner.run(server.close()))
        server.process = self._start(["-m", "services.cli", "serve", "gateway"], child_environment(file))
        self._runner.run(_in_time(_exists(ready_file(deployment.run, "gateway"))))
        return server

    def peer(self, kind: str) -> "Peer":
        """One of the references."""
        texts = self._folder / "texts.json"
        vocabulary = [self._tokenizer.decode([token]) for token in range(self._tokenizer.vocabulary_size)]
        texts.write_text(json.dumps(vocabulary if kind == "fastapi" else [vocabulary[token] for token in self._tokens]))
        server = Peer()
        feed = self._folder / f"{kind}.sock"
        self._runner.run(server.listen(feed))
        self._stack.callback(lambda: self._runner.run(server.close()))
        server.process = self._start(["-m", "ops.bench.gateway_peers", kind, str(feed), str(texts)])
        server.port = int(_line(server.process))
        return server

    def round(self, server: Server) -> float:
        """One round on a server; returns microseconds of its CPU for a token."""
        return self._runner.run(self._round(server))

    async def _round(self, server: Server) -> float:
        steps = WARMUP_STEPS + MEASURED_STEPS + 1
        said = self._tokenizer.decode([self._tokens[step % len(self._tokens)] for step in range(steps)])
        if isinstance(server, Peer):  # there the last frame carries no token
            said = self._tokenizer.decode([self._tokens[step % len(self._tokens)] for step in range(steps - 1)])
        order = {"port": server.port, "key": KEY, "streams": NUM_STREAMS, "text": said}
        assert self._readers.stdin is not None  # noqa: S101  it was asked for
        self._readers.stdin.write(json.dumps(order) + "\n")
        self._readers.stdin.flush()
        await _in_time(server.opened(NUM_STREAMS))
        loop = asyncio.get_running_loop()
        before, due = 0.0, loop.time()
        for step in range(steps):
            if step == WARMUP_STEPS:
                before = await _settled_cpu_s(server.process.pid)
                due = loop.time()
            if step == steps - 1:
                used = await _settled_cpu_s(server.process.pid) - before
            due += STEP_S
            server.step(self._tokens[step % len(self._tokens)], last=step == steps - 1)
            await asyncio.sleep(due - loop.time())
        verdict = await _in_time(asyncio.to_thread(_line, self._readers))
        if not verdict.startswith("done"):
            raise RuntimeError(f"this run is void: {verdict}")
        return used * 1e6 / (MEASURED_STEPS * NUM_STREAMS)

    def _start(self, arguments: list[str], environment: dict[str, str] | None = None) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._stack.callback(_end, process)
        return process


class Gateway:
    """Plays admission and scheduler for the gateway process."""

    process: "subprocess.Popen[str]"

    def __init__(self, port: int) -> None:
        self.port = port
        self._running: list[int] = []
        self._streams: dict[str, Stream] = {}
        self._opened = asyncio.Event()
        self._listeners: list[Listener] = []

    async def listen(self, folder: Path) -> None:
        """Before the gateway starts."""
        for service in ("admission", "scheduler"):
            identity, address = Identity(service), f"unix://{folder}/{service}.sock"
            self._listeners.append(await listen(address, identity, SECRET, Side(self, service)))

    async def close(self) -> None:
        """After it has ended."""
        for listener in self._listeners:
            await listener.close()

    async def opened(self, streams: int) -> None:
        """As `Server.opened`."""
        while len(self._running) < streams:
            self._opened.clear()
            await self._opened.wait()

    def step(self, token: int, *, last: bool) -> None:
        """As `Server.step`."""
        finish = FinishReason.LENGTH if last else 0
        self._streams["scheduler"].send(_frame(self._running, token, finish))
        if last:
            self._running = []

    def joined(self, service: str, stream: Stream) -> None:
        """A stream of the gateway is up."""
        self._streams[service] = stream
        if service == "scheduler":
            stream.send(Capacity(1, 1_000_000, 1_000_000))
        else:
            stream.send(PolicyNow(1, (REPOSITORY / "policies" / "slai.yaml").read_bytes()))

    def submitted(self, submit: Submit) -> None:
        """A stream is asked for."""
        self._streams["admission"].send(Admitted(submit.request, "paid", 1, 0, 0))
        self._running.append(submit.request)
        self._opened.set()


class Side:
    """Receiver of one of the gateway's two streams."""

    def __init__(self, gateway: Gateway, service: str) -> None:
        self._gateway = gateway
        self._service = service

    def opened(self, stream: Stream) -> None:
        """Say what a gateway must know."""
        self._gateway.joined(self._service, stream)

    def received(self, stream: Stream, message: AnyMessage) -> None:  # noqa: ARG002  a Receiver's signature
        """Requests."""
        if isinstance(message, Submit):
            self._gateway.submitted(message)

    def closed(self, stream: Stream, reason: str) -> None:
        """The gateway was stopped."""

    def stalled(self, stream: Stream) -> None:
        """It will catch up."""

    def resumed(self, stream: Stream) -> None:
        """It has."""


class Peer(asyncio.Protocol):
    """Feeds a reference the same frames."""

    process: "subprocess.Popen[str]"
    port: int

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._server: asyncio.Server | None = None
        self._num_opened = 0
        self._opened = asyncio.Event()

    async def listen(self, feed: Path) -> None:
        """Before the reference starts."""
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: self, str(feed))

    async def close(self) -> None:
        """After it has ended."""
        if self._server is not None:
            self._server.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The reference is up."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """One byte for each stream that was opened."""
        self._num_opened += len(data)
        self._opened.set()

    async def opened(self, streams: int) -> None:
        """As `Server.opened`."""
        while self._num_opened < streams:
            self._opened.clear()
            await self._opened.wait()

    def step(self, token: int, *, last: bool) -> None:
        """As `Server.step`."""
        if self._transport is None:
            raise RuntimeError("the reference has not connected")
        self._transport.write(bytes(4) if last else encode_frame(_frame(range(NUM_STREAMS), token, 0)))
        if last:
            self._num_opened = 0


def _frame(sequences: Any, token: int, finish: int) -> TokenFrame:
    count = len(sequences)
    return TokenFrame(
        step=1,
        executor=0,
        revision=1,
        sequences=array("q", sequences).tobytes(),
        tokens=array("i", [token] * count).tobytes(),
        finish=array("b", [finish] * count).tobytes(),
        ready_ns=array("q", [0] * count).tobytes(),
        planned_ns=1,
        launched_ns=2,
        computed_ns=3,
        returned_ns=4,
        num_decode_tokens=count,
    )


async def _settled_cpu_s(pid: int) -> float:
    """User + system time of a process once it has nothing more to do."""
    used = _cpu_s(pid)
    while True:
        await asyncio.sleep(SETTLE_S)
        before, used = used, _cpu_s(pid)
        if used == before:
            return used


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _exists(path: Path) -> None:
    while not path.exists():  # noqa: ASYNC110, ASYNC240  another process makes it, and nothing else runs meanwhile
        await asyncio.sleep(SETTLE_S)


async def _in_time(work: "Coroutine[Any, Any, Any]") -> Any:
    async with asyncio.timeout(WAIT_S):
        return await work


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None  # noqa: S101  it was asked for
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args!r} ended with status {process.wait()}")
    return line.strip()


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    process.communicate(timeout=WAIT_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
