"""What can go wrong: processes killed, stopped, restarted.

Owns when and how a fault strikes, and when it counts as survived. Knows no requests.
"""

import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import numpy as np

from ops.bench.chaos_fences import Fence, Watch
from ops.bench.chaos_house import Hurt, kill, stop, wake
from ops.bench.chaos_load import Load
from ops.bench.harness import progress
from services.settings import REPOSITORY

MOST_PIECES = 400
"""Between two strikes, drawn evenly: some come while nothing has recovered from the last one yet."""
NEWBORN_SHARE = 0.15
"""Of killed processes, those whose successor is killed too while it starts."""
NEWBORN_S = 1.5
JITTER_S = 0.03
"""Pieces come with steps; a fault does not."""
ON_THE_WAY_S = 0.5
TWO = tuple(itertools.combinations(("scheduler", "admission", "executor", "gateway"), 2))
"""Neighbours, and others, that die at the same moment."""


class Strikes:
    """When and how often, and what readers saw of it."""

    def __init__(self, most: int) -> None:
        self.most = most
        """There will be."""
        self.num = 0
        self.pauses_s: list[float] = []
        """After each strike, until any reader got a piece; of a restart, the longest time in which none did."""
        self.fences: list[Fence] = []
        """Of each process that was stopped, when it was to be woken."""

    def struck(self) -> None:
        """One more."""
        self.num += 1
        progress(min(self.num, self.most), self.most)

    def words(self) -> str:
        """For a note."""
        if not self.pauses_s:
            return f"{self.num} strikes"
        middle, longest = statistics.median(self.pauses_s), max(self.pauses_s)
        pauses = f"within {middle:.1f} s (median), {longest:.1f} s at most"
        return f"{self.num} strikes, after which somebody got a piece {pauses}"


Strike = Callable[[Hurt, Load, np.random.Generator, Strikes], Awaitable[None]]


class Fault(NamedTuple):
    """One of them."""

    name: str
    strike: Strike
    """Strike so often while the load goes on; returns when the last is survived."""
    pause_s: float | None = None
    """Somebody must have got a piece again by then; None: whenever."""
    patient: bool = False
    """The supervisor does not mind a silent process: what is stopped is woken, and finds that it was replaced or left.
    """


def _kills(*groups: tuple[str, ...]) -> Strike:
    """All processes of a group at once by kill -9, each group in turn."""

    async def strike(house: Hurt, load: Load, draw: np.random.Generator, strikes: Strikes) -> None:
        while strikes.num < strikes.most:
            await load.pieces(int(draw.integers(1, MOST_PIECES)))
            await asyncio.sleep(draw.uniform(0, JITTER_S))
            group = groups[strikes.num % len(groups)]
            killed = {name: _kill(house, load, name) for name in group}
            struck_s = time.monotonic()
            strikes.struck()
            if draw.random() < NEWBORN_SHARE and strikes.num < strikes.most:
                name = group[0]
                await house.born(name, not_pid=killed[name])
                await asyncio.sleep(draw.uniform(0, NEWBORN_S))
                killed[name] = _kill(house, load, name)
                strikes.struck()
            await load.pieces(1)
            strikes.pauses_s.append(time.monotonic() - struck_s)
            for name, pid in killed.items():
                await house.ready(name, not_pid=pid)

    return strike


def _stops(name: str, stopped_s: float) -> Strike:
    """SIGSTOP: the process does nothing, but what it holds stays open. Woken after that time, if it is still there."""

    async def strike(house: Hurt, load: Load, draw: np.random.Generator, strikes: Strikes) -> None:
        while strikes.num < strikes.most:
            await load.pieces(int(draw.integers(1, MOST_PIECES)))
            await asyncio.sleep(draw.uniform(0, JITTER_S))
            pid, watch = house.pids()[name], Watch(name, house.logs)
            stop(pid)

            def rouse(pid: int = pid, watch: Watch = watch) -> None:
                strikes.fences.append(watch.look(is_gone=house.pids().get(name) != pid))
                wake(pid)

            struck_s = time.monotonic()
            strikes.struck()
            # What was on its way when it stopped still comes.
            await asyncio.sleep(ON_THE_WAY_S)
            waking = asyncio.get_running_loop().call_later(stopped_s - ON_THE_WAY_S, rouse)
            await load.pieces(1)
            strikes.pauses_s.append(time.monotonic() - struck_s)
            # The woken one is awaited too: what it says then must not matter any more.
            await asyncio.sleep(max(0.0, waking.when() - asyncio.get_running_loop().time()) + ON_THE_WAY_S)
            await house.ready(name, not_pid=0)

    return strike


async def _restart(house: Hurt, load: Load, draw: np.random.Generator, strikes: Strikes) -> None:
    """All services, one process after the other, by the command for it.

    Raises:
        RuntimeError: it failed; it has what it said.
    """
    while strikes.num < strikes.most:
        await load.pieces(int(draw.integers(1, MOST_PIECES)))
        strikes.struck()
        load.longest_gap_s = 0.0
        restarting = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli", "restart", "--data-dir", house.deployment.data),
            cwd=REPOSITORY,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await restarting.communicate()
        if restarting.returncode:
            raise RuntimeError(f"this run is void: the restart failed: {said.decode()}")
        await load.pieces(1)
        strikes.pauses_s.append(load.longest_gap_s)


def _kill(house: Hurt, load: Load, name: str) -> int:
    """The pid of what was killed."""
    pid = house.pids()[name]
    # Stopped first, so that it accepts no connection that is not among those known to be lost.
    stop(pid)
    if name.startswith("gateway"):
        load.num_lost.update(house.connections(pid))
    kill(pid)
    return pid


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("kill-executor", _kills(("executor",))),
        Fault("kill-scheduler", _kills(("scheduler",))),
        Fault("kill-admission", _kills(("admission",))),
        Fault("kill-gateway", _kills(("gateway",), ("gateway-2",))),
        Fault("kill-any", _kills(("scheduler",), ("gateway",), ("executor",), ("admission",), ("gateway-2",))),
        Fault("kill-two", _kills(*TWO)),
        Fault("stop-executor", _stops("executor", 30.0), pause_s=30.0),
        Fault("stop-scheduler", _stops("scheduler", 10.0), pause_s=10.0),
        Fault("wake-executor", _stops("executor", 30.0), patient=True),
        Fault("wake-scheduler", _stops("scheduler", 10.0), patient=True),
        Fault("restart", _restart),
    )
}
