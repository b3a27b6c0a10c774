"""A deployment whose processes are killed and stopped: finding them, hurting them, and what they leave behind.

Owns pids, signals, connections (as /proc tells them, so Linux alone) and the books that must be even in the end.
"""

import asyncio
import contextlib
import os
import re
import signal
import socket
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from engine.interface import EngineSettings
from ops.bench import deployed
from ops.bench.chaos_load import House
from ops.bench.shipped import PATIENT
from services.health import process_name, ready_file
from services.settings import (
    Deployment,
    HttpSettings,
    MetricsSettings,
    RecentSettings,
    SupervisionSettings,
    TelemetrySettings,
)
from services.usage_rows import CACHED, FILE, OUTPUT, PROMPT, REQUESTS, read_usage

LIMITS = """
limits:
  - {scope: tenant, dimension: concurrency, max: 80}  # what a fault leaks of them ends in a 429
  - {scope: key, dimension: total_tokens, rate_per_day: 1000000000}
  - {scope: tenant, dimension: requests, rate_per_min: 1000000}
"""
MANY, WINDOW_S = 1000, 1.0
"""Crashes within seconds that are no reason to wait, nor to give a process up: they are ours."""
RECENT = RecentSettings(tokens=4_000, steps=200)
"""What is remembered on purpose is soon all it may be: what grows then is a leak."""
LOOK_S = 0.02
READY_S = 120.0
"""For a process to be back."""
SETTLED_S = 90.0
"""For everything to be given back after the last stream: longer than admission waits for a lost scheduler."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TROUBLE = re.compile(r"^(?:.* CRITICAL .*|[\w.]*(?:Error|Exception|InvalidTransition)(?::.*)?)$", re.MULTILINE)
"""A process that ends because it must not go on, and the last line of a traceback; what is lost, refused or given up
because of a fault is said with other words."""


class Books(NamedTuple):
    """What usage says in sum."""

    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


class Hurt:
    """The services, started as a user starts them, in a folder of their own."""

    def __init__(
        self, folder: Path, stack: contextlib.ExitStack, *, engine: EngineSettings, check: bool, silence_s: float
    ) -> None:
        policy = folder / "policy.yaml"
        policy.write_text(PATIENT + LIMITS)
        self.policy = policy
        metrics = MetricsSettings(gateway=None, admission=None, scheduler=_free_port(), executor=None)
        self.deployment = Deployment(
            data=str(folder / "data"),
            policy=str(policy),
            check=check,
            http=HttpSettings(port=0, gateways=2),
            engine=engine,
            telemetry=TelemetrySettings(metrics=metrics, recent=RECENT),
            supervision=SupervisionSettings(silence_s=silence_s, crashes=MANY, crash_window_s=WINDOW_S),
        ).resolved()
        self.log = folder / "log"
        """What the supervisor says."""
        self.address = House(*deployed.start(self.deployment, folder, stack))
        self._supervisor = _parent(int(self._ready("gateway").read_text().split()[0]))

    @property
    def logs(self) -> Path:
        """The folder of what the services say."""
        return Path(self.deployment.data) / "logs"

    def pids(self) -> dict[str, int]:
        """The services' processes by name, ready or not."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                if _parent(int(folder.name)) != self._supervisor:
                    continue
                words = (folder / "cmdline").read_text().split("\0")
                if "serve" in words:
                    number = int(words[words.index("--replica") + 1]) if "--replica" in words else 1
                    found[process_name(words[words.index("serve") + 1], number - 1)] = int(folder.name)
        return dict(sorted(found.items()))

    async def born(self, name: str, *, not_pid: int) -> int:
        """The process that has taken the place of another; it need not be ready.

        Raises:
            TimeoutError: there is none.
        """
        return await _found(lambda: self.pids().get(name), name, not_pid)

    async def ready(self, name: str, *, not_pid: int) -> int:
        """The process that has taken the place of another, once it can work.

        Raises:
            TimeoutError: there is none.
        """
        return await _found(lambda: self.ready_pid(name), name, not_pid)

    def ready_pid(self, name: str) -> int | None:
        """The process of a service that can work."""
        try:
            return int(self._ready(name).read_text().split()[0])
        except (FileNotFoundError, IndexError):
            return None

    def _ready(self, name: str) -> Path:
        return ready_file(self.deployment.run, name)

    def connections(self, pid: int) -> set[int]:
        """The clients' ports of the HTTP connections that a process has accepted."""
        sockets = {str(descriptor.readlink()) for descriptor in Path(f"/proc/{pid}/fd").iterdir()}
        found = set()
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            words = line.split()
            here, there = (int(address.partition(":")[2], 16) for address in words[1:3])
            if here == self.address.port and f"socket:[{words[9]}]" in sockets:
                found.add(there)
        return found

    def rss_bytes(self) -> dict[str, int]:
        """Resident memory by process; of what a service has started itself, with the last part of its module's name."""
        names = {pid: name for name, pid in self.pids().items()}
        found: dict[str, int] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                pid = int(folder.name)
                name = names.get(pid) or names.get(_parent(pid))
                if name is None:
                    continue
                if pid not in names:
                    name += (
                        "/" + (folder / "cmdline").read_text().partition("\0-m\0")[2].partition("\0")[0].split(".")[-1]
                    )
                found[name] = int((folder / "statm").read_text().split()[1]) * PAGE_BYTES + found.get(name, 0)
        return dict(sorted(found.items()))

    # --- books --------------------------------------------------------------------------------------------------------

    def books(self) -> Books:
        """What `fairlead usage` would say."""
        counts = [row.counts for row in read_usage(Path(self.deployment.data) / FILE, "", 2)]
        return Books(*(sum(count.get(name, 0) for count in counts) for name in (REQUESTS, PROMPT, CACHED, OUTPUT)))

    async def left_behind(self) -> dict[str, int]:
        """What is still held once there is no client any more: charges, limits, blocks, sequences. All zero at once if
        all is well; otherwise what is so after `SETTLED_S`.
        """
        end_s = time.monotonic() + SETTLED_S
        while any((left := self._held()).values()) and time.monotonic() < end_s:  # noqa: ASYNC110  other processes
            await asyncio.sleep(LOOK_S * 10)
        return left

    def _held(self) -> dict[str, int]:
        store = f"file:{self.deployment.data}/{FILE}?mode=ro"
        with contextlib.closing(sqlite3.connect(store, uri=True)) as connection:
            rows = [name for (name,) in connection.execute("SELECT name FROM core_row")]
            levels = [name for (name,) in connection.execute("SELECT name FROM limit_level")]
        numbers = self._scheduler_numbers()
        return {
            "charges": sum(name.startswith("charge:") for name in rows),
            "in flight": sum(name.startswith("taken:") for name in rows),
            "limits": sum(":concurrency:" in name for name in levels),
            "blocks": numbers.get("fairlead_kv_used_blocks", 1),
            "sequences": numbers.get("fairlead_sequences", 1),
        }

    def _scheduler_numbers(self) -> dict[str, int]:
        """Of the scheduler's metrics, over all labels; empty: it does not answer."""
        url = f"http://127.0.0.1:{self.deployment.telemetry.metrics.scheduler}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            return {}
        found: dict[str, int] = {}
        for name, value in re.findall(r"^(\w+)(?:\{[^}]*\})? ([\d.e+]+)$", text, re.MULTILINE):
            found[name] = found.get(name, 0) + int(float(value))
        return found

    def trouble(self) -> list[str]:
        """Lines of the services' logs that no fault should cause."""
        logs = sorted(self.logs.glob("*.log"))
        return [f"{log.stem}: {line}" for log in logs for line in TROUBLE.findall(log.read_text(errors="replace"))]


async def _found(look: Callable[[], int | None], name: str, not_pid: int) -> int:
    end_s = time.monotonic() + READY_S
    # Other processes can only be looked at.
    while (pid := look()) is None or pid == not_pid:
        if time.monotonic() > end_s:
            raise TimeoutError(f"no {name} in place of {not_pid} within {READY_S:g} s")
        await asyncio.sleep(LOOK_S)
    return pid


def kill(pid: int) -> None:
    """At once, whatever it does."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def stop(pid: int) -> None:
    """It does nothing more, and all it holds stays open."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)


def wake(pid: int) -> None:
    """It goes on where it was."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _parent(pid: int) -> int:
    # The name, in parentheses, may have spaces.
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
