"""Mutated HTTP requests against a real gateway: every answer a defined one, nothing hangs, grows or stays.

All four services with the paced synthetic engine, over sockets. Cases are seeded (`--seed`, `--requests`); one that
fails is printed with the bytes that were sent. A stalled request ends by the gateway's own limits, short ones here.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import msgspec
import uvloop

from engine.interface import EngineSettings
from ops.bench.deployed import start
from ops.bench.harness import Paired, Row, at_least, at_most
from ops.bench.http_answers import MalformedError, problem, replies
from ops.bench.http_cases import Case, Cases
from services.health import ready_file
from services.progress import progress_bar
from services.settings import Deployment, HttpSettings

TRACEBACK = "Traceback (most recent call last)"
NUM_CONNECTIONS = 128
HANG_S = 30.0
"""Far above every limit of the gateway here."""
STALL_S = 3.0
"""After which the gateway ends what stalls: longer than this side, which makes the requests too, is ever busy."""
WARM_SHARE = 0.4
"""Of the requests, before memory is looked at for the first time: bodies of megabytes leave holes in it until then."""
MAX_SEQUENCE_TOKENS = 128
POOL_TOKENS = 2**14
"""Few enough for the invariants to be asserted after every event."""
SETTLE_S = 5.0
MAX_TOLD, MAX_SHOWN = 10, 2000


def run(arguments: argparse.Namespace) -> list[Row]:
    """Send them; figures are shares, and ratios of after to before."""
    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as folder, contextlib.ExitStack() as stack:
        http = HttpSettings(port=0, header_s=STALL_S, body_s=STALL_S, idle_s=STALL_S, unread_s=10)
        engine = EngineSettings(
            kind="paced", paced_step_s=0.001, max_sequence_tokens=MAX_SEQUENCE_TOKENS, kv_pool_tokens=POOL_TOKENS
        )
        deployment = Deployment(data=str(Path(folder) / "data"), http=http, engine=engine, check=True)
        port, key = start(deployment, Path(folder), stack)
        admin = (Path(deployment.data) / "admin.key").read_text().strip()
        gateway = Gateway(int(ready_file(deployment.resolved().run, "gateway").read_text().split()[0]))
        fuzz = Fuzz(port, Cases(arguments.seed, (key, admin)), gateway)
        uvloop.run(fuzz.send(arguments.requests))
        alive = gateway.is_alive
        said = "".join(path.read_text(errors="replace") for path in Path(folder).rglob("*log") if path.is_file())
    tracebacks = said.count(TRACEBACK)
    if tracebacks:
        print(said[said.index(TRACEBACK) :][:MAX_SHOWN], file=sys.stderr)
    counts = ", ".join(f"{number} {kind}" for kind, number in fuzz.ends.most_common())
    note = f"seed {arguments.seed}: {counts}; {tracebacks} tracebacks in the logs"
    share = (fuzz.num_right if alive and not tracebacks else 0) / arguments.requests
    defined = at_least("http_requests_with_a_defined_end", "share", _single(share, 1), must=1.0, stretch=1.0)
    defined = msgspec.structs.replace(defined, note=note)
    memory = at_most("gateway_memory_after", "MiB", _single(*fuzz.memory_mib), must=1.1, stretch=1.02)
    files = at_most("gateway_descriptors_after", "files", _single(*fuzz.files), must=1.0, stretch=1.0)
    return [defined, memory, files]


class Gateway:
    """What can be seen of its process."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    @property
    def is_alive(self) -> bool:
        """It is the process of the beginning."""
        return self._folder.exists()

    @property
    def memory_mib(self) -> float:
        """Resident."""
        return int((self._folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    @property
    def num_files(self) -> int:
        """Open descriptors."""
        return len(list((self._folder / "fd").iterdir()))


class Fuzz:
    """One run."""

    def __init__(self, port: int, cases: Cases, gateway: Gateway) -> None:
        self._port = port
        self._cases = iter(cases)
        self._gateway = gateway
        self.num_right = 0
        self.ends: Counter[str] = Counter()
        """How connections ended: statuses, or silence."""
        self.memory_mib = (0.0, 0.0)
        """After all, and once warm."""
        self.files = (0, 0)
        """After all, and once warm."""
        self._num_told = 0

    async def send(self, count: int) -> None:
        """So many cases; the first of them only warm the gateway up."""
        warm = round(count * WARM_SHARE)
        with progress_bar("HTTP requests") as show:
            await self._send(warm, lambda done: show(done, count))
            memory_mib, files = self._gateway.memory_mib, self._gateway.num_files
            await self._send(count - warm, lambda done: show(warm + done, count))
        self.memory_mib = (self._gateway.memory_mib, memory_mib)
        self.files = (self._gateway.num_files, files)

    async def _send(self, count: int, show: Callable[[int], None]) -> None:
        cases, done = islice(self._cases, count), 0

        async def work() -> None:
            nonlocal done
            for case in cases:
                await self._one(case)
                done += 1
                show(done)

        await asyncio.gather(*(work() for _ in range(NUM_CONNECTIONS)))
        await asyncio.sleep(SETTLE_S)  # connections end by the gateway's limits

    async def _one(self, case: Case) -> None:
        try:
            async with asyncio.timeout(HANG_S):
                data = await self._exchange(case)
            wrong = self._judged(case, data)
        except TimeoutError:
            wrong = f"no end after {HANG_S:g} s"
        except MalformedError as error:
            wrong = str(error)
        if not wrong:
            self.num_right += 1
            return
        self._num_told += 1
        if self._num_told <= MAX_TOLD:
            sent = f"{case.sent[:MAX_SHOWN]!r} ({len(case.sent)} bytes, then {case.ends or 'waits'})"
            print(f"\n{case.kind}: {wrong}\n  sent {sent}", file=sys.stderr)

    async def _exchange(self, case: Case) -> bytes:
        """All that comes back until the other side closes."""
        loop, data = asyncio.get_running_loop(), b""
        with socket.socket() as bare, contextlib.suppress(ConnectionError):
            bare.setblocking(False)
            await loop.sock_connect(bare, ("127.0.0.1", self._port))
            with contextlib.suppress(OSError):  # refused before all was sent; the answer may be there
                await loop.sock_sendall(bare, case.sent)
                if case.ends == "half":
                    bare.shutdown(socket.SHUT_WR)
            if case.ends == "reset":
                return data
            while piece := await loop.sock_recv(bare, 2**16):
                data += piece
                if b"event: history" in data:  # the console's, which has no end
                    return b""
        return data

    def _judged(self, case: Case, data: bytes) -> str:
        to_head = case.sent.startswith(b"HEAD ")
        if not data:
            self.ends["silence"] += 1
            endless = b"GET /v1/fairlead/live" in case.sent
            return "" if not case.is_whole or endless else "a whole request got no answer"
        for reply in replies(data, to_head=to_head):
            self.ends[str(reply.status)] += 1
            wrong = problem(reply, to_head=to_head)
            if wrong:
                return wrong
        return ""


def _single(ours: float, reference: float) -> Paired:
    ratio = ours / reference
    return Paired(ours=ours, reference=reference, ratio=ratio, ratios=(ratio, ratio))
