"""`admission.refuse_when_late`: whether a request can still have its first token as soon as its class promises.

Owns how fast released work gets its first tokens, how much of it has none yet, and until when what waits can be in
time. Knows cost and seconds; does not know batches or blocks, and so not when a step will start what is released: a
request's wait is what goes before it over the speed of late, and one with nothing before it is never refused.

Time without an executor does not count: what waits through an outage is served after it. What was let in and is here
again, because whoever had it was lost, is never refused, nor is what was released, however late it turns out to be.
"""

from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from policies.admission import refusals
from policies.admission.drain import jitter
from policies.admission.expectation import position
from policies.admission.nodes import Queued
from policies.admission.speed import NUM_LENGTHS, StartingSpeed, length_of
from policies.admission.standing import Standing
from policies.commands import Refuse
from policies.document.fairness import Fairness
from policies.events import Arrived

if TYPE_CHECKING:
    from policies.admission.core import AdmissionCore

SPARE = 2.0
"""How many times as long as expected a wait is taken to be. With 1 what is let in last is as often late as not, and a
load that has ended is felt for as long as the promise is; `fairlead bench refusals` says what it costs."""
SEEN = 0.25
"""The part of a promise that somebody ahead must have waited, before a wait is believed to be as long as expected."""
SPARE_ENTRIES = 64


class Unstarted(NamedTuple):
    """What was released and has no token yet."""

    length: int
    """Of its prompt, as `length_of` has it."""
    cost: float
    number: int
    """Of its entry in the queue."""
    arrived_at_s: float
    promise_s: float
    """Infinite: it was let in before, and is judged by nobody's promise."""


class Lateness:
    """What is before a request, and how soon that is gone. Counts nothing while the policy does not ask for it.

    Args:
        core: whose requests they are.

    Attributes:
        speed: with which what is released gets its first token.
    """

    def __init__(self, core: "AdmissionCore") -> None:
        self._core = core
        self._fairness: Fairness | None = None
        """That costs are counted by; None: the policy does not ask."""
        self._shortest_first = False
        self._standing = Standing(0.0)
        self._unstarted: dict[int, Unstarted] = {}
        self._by_length = [0.0] * NUM_LENGTHS
        """Cost of what is unstarted, by its prompt's length."""
        self._due: list[tuple[float, int, int]] = []
        """(until when it can be in time, number, request) of what waits or is unstarted, a heap; what left is dropped
        when it is next."""
        self._overdue: deque[tuple[int, int]] = deque()
        """(number, request) of who waits and can no longer be in time, and of some who left since."""
        self._there_since_s: float | None = None
        """Since when there have been executors; None: there are none."""
        self._is_busy = False
        """Whether there is something to start."""
        self._counted_until_s = 0.0
        self.speed = StartingSpeed()

    # --- what happens ---------------------------------------------------------------------------------------------

    def follow(self, now: float) -> None:
        """Another policy is in force: what was measured is forgotten when it was counted otherwise."""
        rules = self._core.rules
        before, after = self._fairness, None if rules.late_after_s is None else rules.fairness
        if before is None or after is None or before.cost != after.cost:
            self._unstarted.clear()
            self._by_length = [0.0] * NUM_LENGTHS
            self.speed = StartingSpeed()
            self._counted_until_s = now
        if before is None or self._standing.after_s != rules.late_after_s:
            self._standing = Standing(rules.late_after_s or 0.0)
        self._fairness = after
        self._shortest_first = rules.starts_shortest_first
        self._list_due()

    def capacity(self, num_executors: int, now: float) -> None:
        """So many executors from now on."""
        self._count_time(now)
        if not num_executors:
            self._there_since_s = None
        elif self._there_since_s is None:
            self._there_since_s = now
            self._list_due()

    def joined(self, queued: Queued, now: float) -> None:
        """A request waits."""
        if self._fairness is not None and self._there_since_s is not None:
            self._count_time(now)
            self._is_busy = True
            heappush(self._due, self._entry(queued))
            if len(self._due) > 2 * (len(self._core.queue.waiting) + len(self._unstarted)) + SPARE_ENTRIES:
                self._tidy_due()

    def released(self, queued: Queued, cost: float, now: float) -> None:
        """A request is released."""
        if self._fairness is not None:
            self._count_time(now)
            self._is_busy = True
            length = length_of(queued.prompt_tokens)
            promise_s = inf if queued.resent else self._promise_s(queued)
            self._unstarted[queued.request] = Unstarted(length, cost, queued.number, queued.arrived_at_s, promise_s)
            self._by_length[length] += cost

    def produced(self, sequences: list[int], now: float) -> None:
        """Output tokens came."""
        if self._fairness is None:
            return
        self._count_time(now)
        self._count_late(now)
        for request in sequences:
            if (started := self._unstarted.get(request)) is not None:
                self.speed.started(started.length, started.cost)
                if now < self._due_s(started) < inf:
                    self._standing.timely(now)
                self._take_out(request)
        self._look_for_work()
        self.speed.sample(now)

    def ended(self, request: int, now: float) -> None:
        """A released request ended, perhaps before its first token."""
        if request in self._unstarted:
            self._count_time(now)
            self._take_out(request)
            self._look_for_work()

    # --- what follows ---------------------------------------------------------------------------------------------

    def on_arrival(self, event: Arrived, arrived_at_s: float, now: float) -> Refuse | None:
        """The refusal of a request that would wait behind all that waits of its tenant, and its share of the others."""
        if self._fairness is None or event.resent:
            return None
        queue = self._core.queue
        account = queue.accounts.get(event.tenant)
        num_own = account.num_waiting if account is not None else 0
        num_waiting = len(queue.waiting)
        before = position(
            by_arrival=self._fairness.kind == "fcfs",
            num_waiting=num_waiting + 1,
            num_own=num_own + 1,
            num_backlogged=queue.num_backlogged + (not num_own),
        )
        waiting_cost = self._core.queued_cost * before / num_waiting if num_waiting else 0.0
        return self._refusal(event, arrived_at_s, waiting_cost, now)

    def on_its_turn(self, queued: Queued, now: float) -> Refuse | None:
        """The refusal of a request that would be released now."""
        if self._fairness is None or queued.resent:
            return None
        return self._refusal(queued, queued.arrived_at_s, 0.0, now)

    def overdue(self, now: float) -> Iterator[tuple[Queued, Refuse]]:
        """What waits and can no longer be in time: each is gone from the queue before the next is asked for."""
        self._count_late(now)
        while self._there_since_s is not None and self._standing.begins_s <= now and self._first_overdue() is not None:
            queued = self._core.queue.waiting[self._overdue.popleft()[1]]
            wait_s = self._wait_s(queued, 0.0)
            yield queued, self._late(queued, now - self._since_s(queued.arrived_at_s) + wait_s)

    def next_due_s(self) -> float:
        """When the next that waits is refused, or the next is late; infinite: never."""
        if self._there_since_s is None:
            return inf
        due = self._due
        while due and not self._is_here(*due[0][1:]):
            heappop(due)
        next_s = due[0][0] if due else inf
        return next_s if self._first_overdue() is None else min(next_s, self._standing.begins_s)

    def check(self) -> None:
        """Assert that only what is in flight is unstarted, that it sums up, and that all that waits has its time."""
        gone = [request for request in self._unstarted if request not in self._core.ledger.in_flight]
        assert not gone, f"requests {gone} have ended and are counted as not started"
        costs = [0.0] * NUM_LENGTHS
        for one in self._unstarted.values():
            costs[one.length] += one.cost
        close = all(abs(one - other) <= 1e-6 * max(1.0, one) for one, other in zip(costs, self._by_length, strict=True))
        assert close, "the cost of what has no token yet does not sum up"
        if self._fairness is not None and self._there_since_s is not None:
            listed = {request for _, _, request in self._due} | {request for _, request in self._overdue}
            missing = self._core.queue.waiting.keys() - listed
            assert not missing, f"requests {sorted(missing)} wait, and it is not known until when they can be in time"

    # --- inside ---------------------------------------------------------------------------------------------------

    def _refusal(self, asked: Arrived | Queued, arrived_at_s: float, waiting_cost: float, now: float) -> Refuse | None:
        if self._there_since_s is None:
            return None
        total_s = now - self._since_s(arrived_at_s) + self._wait_s(asked, waiting_cost)
        promise_s = self._promise_s(asked)
        if total_s <= promise_s or now < self._standing.begins_s or not self._is_real(asked, now):
            return None
        if now < self._since_s(arrived_at_s) + promise_s:
            self._standing.late(now)
        return self._late(asked, total_s)

    def _is_real(self, asked: Arrived | Queued, now: float) -> bool:
        """Whether anybody before it has waited for a good part of what it was promised: many who come at once to an
        executor with time to spare start together, much faster than they would one by one.
        """
        before_s = now - SEEN * self._promise_s(asked)
        waiting, last = self._core.queue.waiting, self._last(asked)
        if waiting and self._since_s(next(iter(waiting.values())).arrived_at_s) <= before_s:
            return True
        return any(
            one.length <= last and self._since_s(one.arrived_at_s) <= before_s for one in self._unstarted.values()
        )

    def _wait_s(self, asked: Arrived | Queued, waiting_cost: float) -> float:
        """From now to its first token, its own prompt not counted; 0 until the speed has been measured."""
        if not self.speed.per_s:
            return 0.0
        last = self._last(asked)
        # Nobody overtakes where prompts start by arrival.
        left_per_s = self.speed.left_per_s(last) if self._shortest_first else self.speed.per_s
        return SPARE * max(0.0, waiting_cost + sum(self._by_length[: last + 1])) / left_per_s

    def _last(self, asked: Arrived | Queued) -> int:
        """The longest of the lengths that start before it."""
        return length_of(asked.prompt_tokens) if self._shortest_first else NUM_LENGTHS

    def _late(self, asked: Arrived | Queued, total_s: float) -> Refuse:
        rules = self._core.rules
        # Once so much of what is before it is gone, the same request is in time. Under a load that lasts most are told
        # the least there is, and must not come back together either.
        retry_s = max(total_s - self._promise_s(asked), refusals.LEAST_RETRY_S) * jitter(asked.request)
        return refusals.late(
            asked.request, asked.tenant, rules.class_of(asked), self._promise_s(asked), total_s=total_s, retry_s=retry_s
        )

    def _promise_s(self, asked: Arrived | Queued) -> float:
        return self._core.rules.ttft_s[self._core.rules.class_of(asked)]

    def _since_s(self, arrived_at_s: float) -> float:
        """From when its time counts."""
        return arrived_at_s if self._there_since_s is None else max(arrived_at_s, self._there_since_s)

    def _entry(self, queued: Queued) -> tuple[float, int, int]:
        due_s = inf if queued.resent else self._since_s(queued.arrived_at_s) + self._promise_s(queued)
        return due_s, queued.number, queued.request

    def _list_due(self) -> None:
        """Anew: what was promised is another, or the time of all begins now."""
        self._overdue.clear()
        self._due = []
        if self._fairness is not None and self._there_since_s is not None:
            self._due = [self._entry(queued) for queued in self._core.queue.waiting.values()]
            self._due += [(self._due_s(one), one.number, request) for request, one in self._unstarted.items()]
            heapify(self._due)

    def _tidy_due(self) -> None:
        self._due = [entry for entry in self._due if self._is_here(*entry[1:])]
        heapify(self._due)

    def _is_here(self, number: int, request: int) -> bool:
        """Whether it waits or is unstarted. Whoever left may have come again since: then another entry is its own."""
        here = self._core.queue.waiting.get(request) or self._unstarted.get(request)
        return here is not None and here.number == number

    def _due_s(self, started: Unstarted) -> float:
        return self._since_s(started.arrived_at_s) + started.promise_s

    def _count_late(self, now: float) -> None:
        """Whoever's time is up is late, wherever it is."""
        while self._there_since_s is not None and self._due and self._due[0][0] <= now:
            _, number, request = heappop(self._due)
            if self._is_here(number, request):
                self._standing.late(now)
                if request in self._core.queue.waiting:
                    self._overdue.append((number, request))

    def _first_overdue(self) -> int | None:
        waiting = self._core.queue.waiting
        while self._overdue and (self._overdue[0][1] not in waiting or not self._is_here(*self._overdue[0])):
            self._overdue.popleft()
        return self._overdue[0][1] if self._overdue else None

    def _look_for_work(self) -> None:
        self._is_busy = bool(self._unstarted or self._core.queue.waiting)
        if not self._is_busy:
            self._standing.gone()

    def _count_time(self, now: float) -> None:
        """The time until now was spent on what is there now."""
        if self._there_since_s is not None and self._is_busy:
            self.speed.busy(now - max(self._counted_until_s, self._there_since_s))
        self._counted_until_s = now

    def _take_out(self, request: int) -> None:
        gone = self._unstarted.pop(request)
        self._by_length[gone.length] -= gone.cost
        if not self._unstarted:
            self._by_length = [0.0] * NUM_LENGTHS
