"""Admission's journal: what changed goes to the store at once, in batches, and is acknowledged when it is kept.

Owns the time of a batch, what becomes of one that could not be kept, and the count of what tenants use; knows neither
the store's means nor what the core's rows mean.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from policies.commands import Command, Counted, Refuse, Settle
from policies.events import Event
from services.admission.store import Batch, Store, StoreError, UsageCell
from services.troubles import STATE, Troubles
from services.usage_rows import CACHED, INVALID, OUTPUT, PROMPT, REFUSED, REQUESTS, day_of

GATHER_S = 0.01
"""What changes within this time is kept together: a batch costs the disk the same, however much is in it."""
RETRY_S = 2.0
CLOSE_S = 5.0

log = logging.getLogger(__name__)


class Source(Protocol):
    """Whose changes are kept."""

    def observe(self, now: float, event: Any, commands: list[Command]) -> None:
        """The core has answered an event."""

    def take(self) -> tuple[dict[str, bytes | None], bool]:
        """The rows that changed since the last call, None for what is gone; and whether these are all there are."""

    def not_kept(self) -> None:
        """What was taken last is lost: the next has everything."""


class Journal:
    """Keeps the state of a core up to date in a store.

    Args:
        troubles: told when the store does not keep it, and when it does again.
        kept: told (epoch of the scheduler, number) of the newest of its ends that is settled for good.
    """

    def __init__(self, store: Store, source: Source, kept: Callable[[int, int], None], troubles: Troubles) -> None:
        self._store = store
        self._source = source
        self._kept = kept
        self._troubles = troubles
        self._usage: Counter[UsageCell] = Counter()
        self._ends = (0, 0)
        self._is_failing = False
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._work())

    def observe(self, now: float, event: Event, commands: list[Command]) -> None:
        """The core has answered an event: what changed is kept within moments, and what was used is counted."""
        self._source.observe(now, event, commands)
        self._changed.set()
        for command in commands:
            match command:
                case Settle():
                    self._count_end(command)
                case Refuse():
                    self._count(command.tenant, REFUSED + command.code, 1)
                case Counted():
                    self._count(command.tenant, REFUSED + INVALID, 1)

    def settled(self, epoch: int, number: int) -> None:
        """The ends of this start of the scheduler up to a number are settled."""
        self._ends = (epoch, number)
        self._changed.set()

    async def close(self) -> None:
        """Keep what is not kept yet, for five seconds at most."""
        self._closing.set()
        self._changed.set()
        if self._task is not None:
            _, late = await asyncio.wait([self._task], timeout=CLOSE_S)
            for task in late:
                log.warning("the store did not keep the last of admission's state within %g s", CLOSE_S)
                task.cancel()

    def _count_end(self, command: Settle) -> None:
        self._count(command.tenant, PROMPT, command.prompt_tokens)
        self._count(command.tenant, CACHED, command.cached_tokens)
        self._count(command.tenant, OUTPUT, command.output_tokens)
        # One that failed before its first token, by a fault of ours, is not a request that was served.
        self._count(command.tenant, REQUESTS, 1 if command.prompt_tokens or command.output_tokens else 0)

    def _count(self, tenant: str, counted: str, amount: int) -> None:
        if amount:
            self._usage[day_of(time.time()), tenant, counted] += amount

    async def _work(self) -> None:
        is_last = False
        while not is_last:
            await self._changed.wait()
            await self._pause(GATHER_S)
            is_last = self._closing.is_set()
            self._changed.clear()
            await self._keep()
            if self._is_failing and not is_last:
                await self._pause(RETRY_S)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)

    async def _keep(self) -> None:
        rows, is_whole = self._source.take()
        batch = Batch(rows, is_whole, dict(self._usage), *self._ends)
        self._usage.clear()
        try:
            # Nothing comes between the rows and the call: limits are kept as they were with these rows.
            await self._store.save(batch)
        except StoreError as error:
            # What this batch said is in the next one, which holds everything: nothing piles up but sums.
            self._source.not_kept()
            self._usage.update(batch.usage)
            self._changed.set()
            self._is_failing = True
            self._troubles.begin(STATE, f"{error}; requests go on, and a restart would begin with what was kept before")
            return
        self._is_failing = False
        self._troubles.over(STATE, "the store keeps admission's state again")
        if batch.ends_number:
            self._kept(batch.scheduler_epoch, batch.ends_number)
