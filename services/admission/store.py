"""What admission asks of whatever keeps its state: limits are taken there, and what must survive goes there.

Two stores meet it: SQLite within this process, and Redis shared by several. A store knows names, amounts and bytes; it
does not know what the rows of the core mean, nor policies.
"""

from collections.abc import Callable
from typing import Protocol

from msgspec import Struct, field

from policies.admission.limits.items import LimitItem
from policies.events import CountersShared, OverLimit, Reserved, StoreReach
from services.usage_rows import UsageRow

__all__ = ["Answer", "Batch", "Kept", "Store", "StoreError", "UsageCell", "UsageRow"]

UsageCell = tuple[str, str, str]
"""Day (UTC, `2026-01-31`), tenant, and what is counted: a name of `services.usage_rows`."""
Answer = Callable[[Reserved | OverLimit | CountersShared | StoreReach], None]
"""Told what the store answers, or what other replicas did; called in the event loop."""


class StoreError(Exception):
    """The store cannot do it at the moment; the sentence says which store and why."""


class Batch(Struct):
    """What changed since the batch before, to be kept together or not at all."""

    rows: dict[str, bytes | None]
    """Of the core's state, by name; None: there is no such row any more."""
    is_whole: bool = False
    """These are all rows there are: what was kept before and is not among them goes."""
    usage: dict[UsageCell, int] = field(default_factory=dict)
    """Added to what was counted before."""
    scheduler_epoch: int = 0
    """Which start of the scheduler `ends_number` counts the ends of."""
    ends_number: int = 0
    """The newest end that is settled in this batch or an earlier one."""


class Kept(Struct, frozen=True):
    """What an earlier process has left."""

    rows: dict[str, bytes] = {}
    """Of the core's state; empty: there is none."""
    scheduler_epoch: int = 0
    ends_number: int = 0
    """As in `Batch`."""


class Store(Protocol):
    """Keeps limits, the state of the core, and usage."""

    async def open(self) -> Kept:
        """Begin; what an earlier process of this instance left.

        Raises:
            StartError: it cannot be used, and admission cannot do without it.
        """

    def reserve(self, request: int, items: tuple[LimitItem, ...]) -> None:
        """Take all of these, or nothing. Answered once by `Reserved` or `OverLimit`: within this call or later, but in
        the order of the calls.
        """

    def adjust(self, request: int, items: tuple[tuple[LimitItem, int], ...]) -> None:
        """What was reserved turned out to be another amount: (item as reserved, actual amount) each."""

    async def save(self, batch: Batch) -> None:
        """Keep a batch together with every limit as it is at this call; returns when it will survive this process.

        One call at a time; the rows and the limits are taken before it first waits.

        Raises:
            StoreError: it is not kept. The next batch must be whole, and carry this one's usage.
        """

    async def usage(self, tenant: str, num_days: int) -> list[UsageRow]:
        """What was used by a tenant (empty: by each) in the last days, today included; by day, then tenant.

        Raises:
            StoreError: it cannot be read.
        """

    async def close(self) -> None:
        """Let go of it. What was not saved is lost."""
