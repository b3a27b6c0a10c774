"""Token gaps of 16 fast readers, with and without a reader of one byte a second beside them.

All four services, with the paced synthetic engine (20 ms a step), so that a gap is the services' doing. The figure of
a round is the 99th percentile of all gaps between successive arrivals of text at the fast readers. Within the round the
slow reader fills its kernel buffers, so that its text is held back; each fast reader must get every token.
"""

import argparse
import asyncio
import contextlib
import re
import socket
import statistics
import tempfile
from pathlib import Path

import uvloop

from engine.interface import EngineSettings
from ops.bench.deployed import start
from ops.bench.harness import Row, at_most, interleave
from ops.bench.readers import Reader, request
from services.settings import Deployment, HttpSettings

NUM_FAST = 16
NUM_TOKENS = 300
SEED = 21
"""With it each of the fast readers' tokens completes a character. One token in seventy is a part of one and shows no
text: the gap around it would be two steps however well it was delivered, and the 99th percentile one of those."""
TEXT = b'"delta":{"content":'
NUM_SLOW_TOKENS = 2_000
STEP_S = 0.02
SLOW_PAUSE_S = 1.0
RECEIVE_BUFFER_BYTES = 4096
STREAM_BUFFER_BYTES = 16 * 2**10
ROUND_S = 60.0


def run(arguments: argparse.Namespace) -> list[Row]:
    """Measure; figures are milliseconds."""
    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as folder, contextlib.ExitStack() as stack:
        deployment = Deployment(
            data=str(Path(folder) / "data"),
            http=HttpSettings(port=0, stream_buffer_bytes=STREAM_BUFFER_BYTES),
            engine=EngineSettings(kind="paced", paced_step_s=STEP_S),
        )
        port, key = start(deployment, Path(folder), stack)
        paired = interleave(
            lambda: uvloop.run(_round(port, key, slow=True)),
            lambda: uvloop.run(_round(port, key, slow=False)),
            rounds=arguments.rounds,
        )
    return [at_most("fast_readers_p99_tbt_beside_a_slow_one", "ms", paired, must=1.5, stretch=1.1)]


class FastReader(Reader):
    """Reads as fast as it can and keeps when text came."""

    def __init__(self, asked: bytes) -> None:
        super().__init__(asked)
        self._loop = asyncio.get_running_loop()
        self.arrivals_s: list[float] = []

    def data_received(self, data: bytes) -> None:
        """Text, or the end."""
        # A mark may lie across two pieces.
        before = self.pieces[-1][1 - len(TEXT) :] if self.pieces else b""
        self.arrivals_s += [self._loop.time()] * (before + data).count(TEXT)
        super().data_received(data)

    @property
    def num_tokens(self) -> int:
        """Output tokens, as the usage says."""
        found = re.search(rb'"completion_tokens":(\d+)', b"".join(self.pieces))
        return int(found[1]) if found else 0


async def _round(port: int, key: str, *, slow: bool) -> float:
    """Milliseconds of the 99th percentile."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(_read_slowly(port, key)) if slow else None
    more = {"max_tokens": NUM_TOKENS, "ignore_eos": True, "seed": SEED, "stream_options": {"include_usage": True}}
    readers: list[FastReader] = []
    asked = request(key, **more)
    for _ in range(NUM_FAST):
        _, reader = await loop.create_connection(lambda: FastReader(asked), "127.0.0.1", port)
        readers.append(reader)
    async with asyncio.timeout(ROUND_S):
        await asyncio.gather(*(reader.ended for reader in readers))
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    counts = [reader.num_tokens for reader in readers]
    if counts != [NUM_TOKENS] * NUM_FAST:
        raise RuntimeError(f"this run is void: the fast readers got {counts} tokens")
    counts = [len(reader.arrivals_s) for reader in readers]
    if counts != [NUM_TOKENS] * NUM_FAST:
        raise RuntimeError(
            f"this run is void: the fast readers saw {counts} pieces of text for {NUM_TOKENS} tokens each"
        )
    gaps = [b - a for reader in readers for a, b in zip(reader.arrivals_s, reader.arrivals_s[1:], strict=False)]
    return statistics.quantiles(gaps, n=100)[98] * 1e3


async def _read_slowly(port: int, key: str) -> None:
    """One byte a second, through a small window, until cancelled or cut off."""
    loop = asyncio.get_running_loop()
    with socket.socket() as bare, contextlib.suppress(ConnectionError):
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        bare.setblocking(False)
        await loop.sock_connect(bare, ("127.0.0.1", port))
        await loop.sock_sendall(bare, request(key, max_tokens=NUM_SLOW_TOKENS, ignore_eos=True))
        while await loop.sock_recv(bare, 1):  # noqa: ASYNC110  the pause is what makes it slow
            await asyncio.sleep(SLOW_PAUSE_S)
