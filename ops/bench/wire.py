"""What the streams between services cost: a round trip, and the codec of a token frame.

Reference of the round trip: two processes playing ping-pong with the same frame over blocking Unix sockets, the least
Python can do. Reference of the codec: the same tokens as a list of msgspec row structs, one object a token.
"""

import argparse
import asyncio
import multiprocessing
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import msgspec
import numpy as np
import uvloop

from ops.bench.harness import Row, at_most, interleave
from services.framing import Identity, encode_frame
from services.transport import Link, Stream, listen
from services.wire import AnyMessage, Cancel, Message, TokenFrame, decoder, encoder

ROUND_TRIPS = 4_000
NUM_TOKENS = 256
CODEC_REPEATS = 400
PING = Cancel(request=(1 << 40) + 7)
"""A small message, as the services send between steps."""


def run(arguments: argparse.Namespace) -> list[Row]:
    """Measure both; figures are seconds. Client and server are pinned, each to its own core where there are two."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    try:
        return _measure(arguments.rounds)
    finally:
        os.sched_setaffinity(0, cores)


def _measure(rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        address, raw = f"unix://{folder}/ours/ping.sock", f"{folder}/raw.sock"
        secret = secrets.token_bytes(32)
        with _peer(_serve_ours, address, secret), _peer(_serve_raw, raw):
            trip = interleave(
                lambda: uvloop.run(_our_round_trips(address, secret)), lambda: _raw_round_trips(raw), rounds=rounds
            )
    codec = interleave(_columnar, _row_structs, rounds=rounds)
    return [
        at_most("ipc_round_trip_vs_blocking_sockets", "s per round trip", trip, must=1.5, stretch=1.25),
        at_most("codec_cpu_per_token_vs_row_structs", "s per token", codec, must=1.0, stretch=0.35),
    ]


class _Echo:
    """Sends back whatever comes."""

    def opened(self, stream: Stream) -> None:
        pass

    def received(self, stream: Stream, message: AnyMessage) -> None:
        stream.send(message)

    def closed(self, stream: Stream, reason: str) -> None:
        pass

    def stalled(self, stream: Stream) -> None:
        pass

    def resumed(self, stream: Stream) -> None:
        pass


class _Player(_Echo):
    """Sends the first ping and counts the answers."""

    def __init__(self) -> None:
        self.left = ROUND_TRIPS
        self.began_s = 0.0
        self.seconds: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def opened(self, stream: Stream) -> None:
        self.began_s = time.perf_counter()
        stream.send(PING)

    def received(self, stream: Stream, message: AnyMessage) -> None:
        self.left -= 1
        if self.left:
            stream.send(message)
        else:
            self.seconds.set_result(time.perf_counter() - self.began_s)


async def _our_round_trips(address: str, secret: bytes) -> float:
    player = _Player()
    link = Link(address, Identity("bench"), secret, player)
    link.start()
    try:
        return await player.seconds / ROUND_TRIPS
    finally:
        await link.close()


def _serve_ours(ready: Connection, address: str, secret: bytes) -> None:
    _leave_the_clients_core()

    async def serve() -> None:
        await listen(address, Identity("echo"), secret, _Echo())
        ready.send(None)
        await asyncio.Event().wait()

    uvloop.run(serve())


def _raw_round_trips(path: str) -> float:
    frame = bytes(encode_frame(PING))
    with socket.socket(socket.AF_UNIX) as connected:
        connected.connect(path)
        began_s = time.perf_counter()
        for _ in range(ROUND_TRIPS):
            connected.sendall(frame)
            connected.recv(4096)
        return (time.perf_counter() - began_s) / ROUND_TRIPS


def _serve_raw(ready: Connection, path: str) -> None:
    _leave_the_clients_core()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        ready.send(None)
        while True:
            connected, _ = listener.accept()
            with connected:
                while data := connected.recv(4096):
                    connected.sendall(data)


def _leave_the_clients_core() -> None:
    (client,) = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    others = os.sched_getaffinity(0) - {client}
    os.sched_setaffinity(0, others or {client})


@contextmanager
def _peer(target: Callable[..., None], *arguments: object) -> Iterator[None]:
    """A process of its own that serves until the measurement is over."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    ours.recv()
    try:
        yield
    finally:
        process.terminate()
        process.join()


class _TokenRow(msgspec.Struct):
    sequence: int
    token: int
    finish: int
    ready_ns: int


class _RowFrame(Message, tag="rows"):
    """A token frame as one might write it first: an object for each token."""

    step: int
    executor: int
    revision: int
    rows: list[_TokenRow]
    planned_ns: int
    launched_ns: int
    computed_ns: int
    returned_ns: int


_SEQUENCES = np.arange(NUM_TOKENS, dtype=np.int64) + (1 << 40)
_TOKENS = np.arange(NUM_TOKENS, dtype=np.int32) * 7
_FINISH = np.zeros(NUM_TOKENS, np.int8)
_READY = np.full(NUM_TOKENS, 1 << 50, np.int64)
_STAMPS = {"planned_ns": 1 << 50, "launched_ns": 1 << 50, "computed_ns": 1 << 50, "returned_ns": 1 << 50}


def _columnar() -> float:
    """Arrays to bytes on the wire and back to lists the pump can walk."""
    began_s = time.process_time()
    for _ in range(CODEC_REPEATS):
        frame = TokenFrame(
            1, 0, 1, _SEQUENCES.tobytes(), _TOKENS.tobytes(), _FINISH.tobytes(), _READY.tobytes(), **_STAMPS
        )
        received = decoder.decode(encoder.encode(frame))
        assert isinstance(received, TokenFrame)  # noqa: S101  narrows the union for the type checker
        np.frombuffer(received.sequences, np.int64).tolist()
        np.frombuffer(received.tokens, np.int32).tolist()
        np.frombuffer(received.finish, np.int8).tolist()
        np.frombuffer(received.ready_ns, np.int64).tolist()
    return (time.process_time() - began_s) / (CODEC_REPEATS * NUM_TOKENS)


def _row_structs() -> float:
    rows_decoder = msgspec.msgpack.Decoder(_RowFrame)
    columns = [column.tolist() for column in (_SEQUENCES, _TOKENS, _FINISH, _READY)]
    began_s = time.process_time()
    for _ in range(CODEC_REPEATS):
        rows = [_TokenRow(*row) for row in zip(*columns, strict=True)]
        rows_decoder.decode(encoder.encode(_RowFrame(1, 0, 1, rows, **_STAMPS)))
    return (time.process_time() - began_s) / (CODEC_REPEATS * NUM_TOKENS)
