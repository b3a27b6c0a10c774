"""The store that admission processes share: Redis.

Owns the order of what is asked, and what becomes of it while the server is out of reach: for `stale_ok_s` this process
goes on with what it knows and makes good for it afterwards; then it refuses as `fail` says. Knows no connection's
details, no script and no policy.

One batch is under way at a time, and the server does it once however often it is sent. So after a break it is known
what was done: the batch is sent again, and what was decided here meanwhile is set right.
"""

import asyncio
import contextlib
import logging
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from datetime import date, timedelta
from typing import Any, Literal, Protocol

import msgspec

from policies.admission.limits.items import LimitItem
from policies.events import CountersShared, Reserved, StoreReach
from services.admission.redis_connection import NOT_ANSWERED, RedisConnection
from services.admission.redis_limits import FollowedLimits
from services.admission.redis_operations import (
    AdjustOperation,
    BatchAnswer,
    ExchangeOperation,
    HoldOperation,
    KeepOperation,
    Operation,
    Place,
    ReserveOperation,
    Session,
    encode,
    read_held,
    read_items,
    read_usage_field,
)
from services.admission.store import Answer, Batch, Kept, StoreError, UsageRow
from services.runtime import StartError
from services.settings import Deployment
from services.troubles import STORE, Troubles
from services.usage_rows import day_of

MOST_AT_ONCE = 500
"""Operations of a batch: the server does nothing else meanwhile."""
RETRY_S = 0.1
FRESH_FLUSHES = 20
"""How many flushes a replica may miss before its floors are not believed any more."""
CLOSE_S = 2.0
CHANGES_AT_ONCE = 100
OUTAGE = "outage"
"""Stands for all requests of which something was decided while the server was out of reach."""

log = logging.getLogger(__name__)


class Shares(Protocol):
    """The counters that replicas share."""

    def changed(self, names: Iterable[str]) -> None:
        """These rows of the core have changed."""

    def ask(self, fresh_ms: int) -> ExchangeOperation:
        """What to tell the others."""

    def told(self, answer: list[Any], num_replicas: int) -> CountersShared | None:
        """What the others have done; None: nothing that matters here."""

    def forgotten(self) -> None:
        """The server has lost what it knew."""


class RedisStore:
    """Meets `services.admission.store.Store`.

    Args:
        instance: which admission process of the deployment this is.

    Raises:
        StartError: the address or the password file cannot be used.
    """

    def __init__(
        self, deployment: Deployment, instance: str, answer: Answer, shares: Shares, troubles: Troubles
    ) -> None:
        self._settings = deployment.shared_store
        self._connection = RedisConnection(deployment)
        self._address = self._connection.address
        self._place = Place(self._settings.name, instance)
        self._session = Session(self._place, str(time.time_ns()), self._settings.lease_s)
        self._answer = answer
        self._shares = shares
        self._troubles = troubles
        self._limits = FollowedLimits()
        self._asked: deque[Operation] = deque()
        self._under_way: list[Operation] = []
        self._unkept: dict[int, tuple[LimitItem, ...]] = {}
        """What requests have reserved that no row says yet."""
        self._saved: asyncio.Future[None] | None = None
        self._number = 0
        self._done_number: int | None = None
        """Of the last batch that the server has done; None: it does not matter what it did."""
        self._lost_at_s: float | None = None
        self._why_lost = self._meanwhile = ""
        """Why the server cannot be used, and what becomes of requests, in words."""
        self._refusing: asyncio.TimerHandle | None = None
        self._owed: dict[str, tuple[LimitItem, int]] = {}
        """What was decided here of each limit and the server does not know: (the item, units more)."""
        self._clock = (time.time_ns(), time.monotonic_ns())
        """The server's time, and ours when it was told."""
        self._exchange_at_s = 0.0
        self._due = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._num_replicas = 1

    @property
    def out_of_reach_s(self) -> float:
        """How long the server has not answered; 0: it does."""
        return 0.0 if self._lost_at_s is None else time.monotonic() - self._lost_at_s

    async def open(self) -> Kept:
        """As `Store.open`. What an earlier process had reserved and told nobody goes back."""
        deadline = time.monotonic() + self._settings.stale_ok_s
        while True:
            try:
                kept = await self._read()
                break
            except NOT_ANSWERED as error:
                if time.monotonic() > deadline:
                    await self._connection.close()
                    raise StartError(f"the store {self._address} cannot be used: {error}") from error
            await asyncio.sleep(RETRY_S)
        self._task = asyncio.get_running_loop().create_task(self._work())
        # A crash of the task would otherwise wait for its result to be asked for.
        self._task.add_done_callback(lambda task: task.cancelled() or task.result())
        return kept

    async def _read(self) -> Kept:
        rows = await self._connection.fields(self._place.rows)
        for request, value in (await self._connection.fields(self._place.reserved)).items():
            # Gauges are held by process, and that one is gone.
            changes = [(item, -item.amount) for item in read_items(value) if item.algorithm != "gauge"]
            self._asked.append(AdjustOperation(request.decode(), changes, reserved=None))
        epoch, number = rows.get(b"settled", b"0 0").split()
        for item, units in read_held(rows.get(b"held", b"[]")):
            self._limits.held[item.name] = (item, units)
        prefix = b"row "
        return Kept(
            {name[len(prefix) :].decode(): value for name, value in rows.items() if name.startswith(prefix)},
            int(epoch),
            int(number),
        )

    def reserve(self, request: int, items: tuple[LimitItem, ...]) -> None:
        """As `Store.reserve`; answered within `answer_s`, by the server or without it."""
        operation = ReserveOperation(request, items)
        if self._lost_at_s is not None:
            if self._decide(operation):
                self._owe((item, item.amount) for item in items)
            return
        self._ask(operation)

    def adjust(self, request: int, items: tuple[tuple[LimitItem, int], ...]) -> None:
        """As `Store.adjust`."""
        self._limits.adjust(request, items, self._now_ns())
        if self._lost_at_s is not None:
            self._owe((item, actual - item.amount) for item, actual in items)
            return
        actual = {item.name: amount for item, amount in items}
        reserved = tuple(
            msgspec.structs.replace(item, amount=actual.get(item.name, item.amount))
            for item in self._unkept.get(request, ())
        )
        if reserved:
            self._unkept[request] = reserved
        changes = [(item, amount - item.amount) for item, amount in items]
        self._ask(AdjustOperation(str(request), changes, reserved))

    async def save(self, batch: Batch) -> None:
        """As `Store.save`. While the server is out of reach it waits: then nothing needs to be kept twice.

        Raises:
            StoreError: the server has lost what was kept before.
        """
        self._shares.changed(batch.rows)
        self._saved = asyncio.get_running_loop().create_future()
        self._ask(KeepOperation(batch, list(self._limits.held.values()), list(self._unkept)))
        self._unkept.clear()
        await self._saved

    async def usage(self, tenant: str, num_days: int) -> list[UsageRow]:
        """As `Store.usage`, of all replicas together."""
        today = date.fromisoformat(day_of(time.time()))
        rows: list[UsageRow] = []
        for back in reversed(range(num_days)):
            day = (today - timedelta(days=back)).isoformat()
            try:
                fields = await self._connection.fields(self._place.usage(day))
            except NOT_ANSWERED as error:
                raise StoreError(f"usage cannot be read: {self._address}: {error}") from error
            counts: defaultdict[str, dict[str, int]] = defaultdict(dict)
            for name, amount in fields.items():
                whose, counted = read_usage_field(name)
                if tenant in ("", whose):
                    counts[whose][counted] = int(amount)
            rows.extend(UsageRow(day, whose, counts[whose]) for whose in sorted(counts))
        return rows

    async def close(self) -> None:
        """As `Store.close`; what was asked is done first, unless the server does not answer."""
        self._closing = True
        self._due.set()
        if self._refusing is not None:
            self._refusing.cancel()
        if self._task is not None:
            _, late = await asyncio.wait([self._task], timeout=CLOSE_S)
            for task in late:
                task.cancel()
        await self._connection.close()

    # --- batches --------------------------------------------------------------------------------------------------

    def _ask(self, operation: Operation) -> None:
        self._asked.append(operation)
        self._due.set()

    async def _work(self) -> None:
        while self._asked or not self._closing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.flush_s):
                    await self._due.wait()
            operations = [self._asked.popleft() for _ in range(min(MOST_AT_ONCE, len(self._asked)))]
            if not self._asked and not self._closing:
                self._due.clear()
            if time.monotonic() >= self._exchange_at_s:
                self._exchange_at_s = time.monotonic() + self._settings.flush_s
                operations.append(self._shares.ask(round(1000 * FRESH_FLUSHES * self._settings.flush_s)))
            if operations:
                await self._have_done(operations)

    async def _have_done(self, operations: list[Operation]) -> None:
        self._under_way = operations
        self._number += 1
        batch = encode(self._session, self._number, operations, self._done_number)
        answer: BatchAnswer | None = None
        while answer is None:
            try:
                answer = await self._connection.run(batch)
            except NOT_ANSWERED as error:
                self._lost(error)
                await asyncio.sleep(RETRY_S)
        self._under_way = []
        self._clock = (answer.now_ns, time.monotonic_ns())
        self._num_replicas = answer.num_replicas
        if not answer.answers:
            self._emptied(operations)
        else:
            self._done_number = self._number
            for operation, result in zip(operations, answer.answers, strict=True):
                self._answered(operation, result, answer.now_ns)
        if self._lost_at_s is not None:
            self._found()
        if self._owed:
            self._pay()
        if not answer.had_lease:
            self._asked.appendleft(HoldOperation(list(self._limits.held.values())))

    def _answered(self, operation: Operation, result: Any, now_ns: int) -> None:
        match operation:
            case ReserveOperation(was_taken=None):
                taken, states = result
                event = self._limits.answered(operation.request, operation.items, states, now_ns, taken=taken)
                if taken:
                    self._unkept[operation.request] = operation.items
                self._answer(event)
            case ReserveOperation() if operation.was_taken != result[0]:
                sign = 1 if operation.was_taken else -1
                self._owe((item, sign * item.amount) for item in operation.items)
            case KeepOperation():
                self._done(None)
            case ExchangeOperation():
                shared = self._shares.told(result, self._num_replicas)
                if shared is not None:
                    self._answer(shared)

    def _done(self, error: StoreError | None) -> None:
        saved, self._saved = self._saved, None
        if saved is None or saved.done():
            return
        if error is None:
            saved.set_result(None)
        else:
            saved.set_exception(error)

    def _emptied(self, operations: list[Operation]) -> None:
        log.error(
            "%s has lost what it was told last, or all: limits go on from what it has, and all else is told again",
            self._address,
        )
        self._done_number = None
        self._shares.forgotten()
        if any(isinstance(operation, KeepOperation) for operation in operations):
            self._done(StoreError(f"{self._address} has lost what it kept"))
        again = [each for each in operations if not isinstance(each, KeepOperation | ExchangeOperation)]
        self._asked.extendleft(reversed(again))
        self._due.set()

    # --- without the server ---------------------------------------------------------------------------------------

    def _lost(self, error: Exception) -> None:
        self._why_lost = str(error) or type(error).__name__
        if self._lost_at_s is not None:
            # A server that was gone may be back and refuse: the last reason is the one to mend.
            self._say_lost()
            return
        self._lost_at_s = time.monotonic()
        self._meanwhile = f"admission goes on for {self._settings.stale_ok_s:g} s with what it knows"
        self._say_lost()
        self._refusing = asyncio.get_running_loop().call_later(self._settings.stale_ok_s, self._refuse)
        waiting, self._asked = self._asked, deque()
        for operation in self._under_way:
            if isinstance(operation, ReserveOperation):
                self._decide(operation)
        for operation in waiting:
            match operation:
                case ReserveOperation():
                    if self._decide(operation):
                        self._owe((item, item.amount) for item in operation.items)
                case AdjustOperation():
                    self._owe(operation.changes)
                case KeepOperation():
                    self._asked.append(operation)

    def _say_lost(self) -> None:
        self._troubles.begin(STORE, f"{self._address} is out of reach ({self._why_lost}): {self._meanwhile}")

    def _refuse(self) -> None:
        fail = self._settings.fail
        refuses: Literal["nothing", "limited", "all"] = "limited" if fail.limits == "closed" else "nothing"
        if fail.fairness == "closed":
            refuses = "all"
        self._meanwhile = f"requests that are refused from now on: {refuses}"
        self._say_lost()
        log.error("%s is still out of reach (%s): %s", self._address, self._why_lost, self._meanwhile)
        self._answer(StoreReach(refuses, self.out_of_reach_s))

    def _decide(self, operation: ReserveOperation) -> bool:
        answer = self._limits.reserve(operation.request, operation.items, self._now_ns())
        operation.was_taken = isinstance(answer, Reserved)
        self._answer(answer)
        return operation.was_taken

    def _owe(self, changes: Iterable[tuple[LimitItem, int]]) -> None:
        for item, change in changes:
            _, owed = self._owed.get(item.name, (item, 0))
            self._owed[item.name] = (item, owed + change)

    def _found(self) -> None:
        self._troubles.over(STORE, f"{self._address} is back after {self.out_of_reach_s:.1f} s")
        self._lost_at_s = None
        if self._refusing is not None:
            self._refusing.cancel()
            self._refusing = None
        self._limits.follow_again()
        self._answer(StoreReach())

    def _pay(self) -> None:
        owed, self._owed = self._owed, {}
        held = self._limits.held
        gauges = [(item, held.get(item.name, (item, 0))[1]) for item, _ in owed.values() if item.algorithm == "gauge"]
        changes = [(item, change) for item, change in owed.values() if item.algorithm != "gauge" and change]
        self._ask(HoldOperation(gauges))
        for first in range(0, len(changes), CHANGES_AT_ONCE):
            self._ask(AdjustOperation(OUTAGE, changes[first : first + CHANGES_AT_ONCE]))

    def _now_ns(self) -> int:
        server_ns, ours_ns = self._clock
        # While the server answers, its clock is the one that counts, and ours may be ahead.
        return server_ns if self._lost_at_s is None else server_ns + time.monotonic_ns() - ours_ns
