"""`admission.refuse_when_late`: whether a request can still have its first token as soon as its class promises.

Owns how fast released work gets its first tokens, how much of it has none yet, and until when what waits can be in
time. Knows cost and seconds; does not know batches or blocks, and so not when a step will start what is released: a
request's wait is what goes before it over the speed of late, and one with nothing before it is never refused.

Time without an executor does not count: what waits through an outage is served after it. What was let in and is here
again, because whoever had it was lost, is never refused, nor is what was released, however late it turns out to be.
"""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING

from policies.admission import refusals
from policies.admission.drain import jitter
from policies.admission.expectation import position
from policies.admission.nodes import Queued
from policies.commands import Refuse
from policies.document.fairness import Fairness
from policies.events import Arrived

if TYPE_CHECKING:
    from policies.admission.core import AdmissionCore

SAMPLE_S = 1.0
"""Seconds with something to start, together, that make one sample of the speed."""
NEWEST_SHARE = 0.5
"""Of a sample that is slower than the speed; a faster one counts whole, because it shows what can be done."""
SPARE = 2.0
"""How many times as long as expected a wait is taken to be. With 1 what is let in last is as often late as not, and a
load that has ended is felt for as long as the promise is; `fairlead bench refusals` says what it costs."""
SEEN = 0.25
"""The part of a promise that somebody ahead must have waited, before a wait is believed to be as long as expected."""
NUM_LENGTHS = 256
"""Lengths of prompts told apart: eight to a power of two."""
SPARE_ENTRIES = 64


class Lateness:
    """What is before a request, and how soon that is gone. Counts nothing while the policy does not ask for it.

    Args:
        core: whose requests they are.

    Attributes:
        per_s: cost that gets its first token per second while there is something to start; 0: not measured yet.
    """

    def __init__(self, core: "AdmissionCore") -> None:
        self._core = core
        self._fairness: Fairness | None = None
        """That costs are counted by; None: the policy does not ask."""
        self._shortest_first = False
        self._unstarted: dict[int, tuple[int, float, float]] = {}
        """(its prompt's length as `_length` has it, cost, arrival) of what was released and has no token yet, by
        request."""
        self._by_length = [0.0] * NUM_LENGTHS
        """Cost of what is unstarted, by its prompt's length."""
        self._due: list[tuple[float, int, int]] = []
        """(until when it can be in time, number, request) of what waits, a heap; what left is dropped when it is next.
        """
        self._there_since_s: float | None = None
        """Since when there have been executors; None: there are none."""
        self._is_busy = False
        """Whether there is something to start."""
        self._counted_until_s = 0.0
        self._busy_s = 0.0
        self._started_cost = 0.0
        self.per_s = 0.0

    # --- what happens ---------------------------------------------------------------------------------------------

    def follow(self, now: float) -> None:
        """Another policy is in force: what was measured is forgotten when it was counted otherwise."""
        rules = self._core.rules
        before, after = self._fairness, rules.fairness if rules.refuse_when_late else None
        if before is None or after is None or before.cost != after.cost:
            self._unstarted.clear()
            self._by_length = [0.0] * NUM_LENGTHS
            self._busy_s = self._started_cost = self.per_s = 0.0
            self._counted_until_s = now
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
            if len(self._due) > 2 * len(self._core.queue.waiting) + SPARE_ENTRIES:
                self._list_due()
            else:
                heappush(self._due, self._entry(queued))

    def released(self, queued: Queued, cost: float, now: float) -> None:
        """A request is released."""
        if self._fairness is not None:
            self._count_time(now)
            self._is_busy = True
            length = _length(queued.prompt_tokens)
            self._unstarted[queued.request] = length, cost, queued.arrived_at_s
            self._by_length[length] += cost

    def produced(self, sequences: list[int], now: float) -> None:
        """Output tokens came."""
        if self._fairness is None:
            return
        self._count_time(now)
        for request in self._unstarted.keys() & sequences:
            self._started_cost += self._unstarted[request][1]
            self._take_out(request)
        self._is_busy = bool(self._unstarted or self._core.queue.waiting)
        if self._busy_s >= SAMPLE_S:
            sample = self._started_cost / self._busy_s
            self.per_s += (NEWEST_SHARE if sample < self.per_s else 1.0) * (sample - self.per_s)
            self._busy_s = self._started_cost = 0.0

    def ended(self, request: int, now: float) -> None:
        """A released request ended, perhaps before its first token."""
        if request in self._unstarted:
            self._count_time(now)
            self._take_out(request)

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
        waiting = self._core.queue.waiting
        while self.next_due_s() <= now:
            queued = waiting[heappop(self._due)[2]]
            wait_s = self._wait_s(queued, 0.0)
            yield queued, self._late(queued, now - self._since_s(queued.arrived_at_s) + wait_s)

    def next_due_s(self) -> float:
        """When the next that waits can no longer be in time; infinite: never."""
        due, waiting = self._due, self._core.queue.waiting
        # Whoever left may have come again since: then another entry is its own.
        while due and ((queued := waiting.get(due[0][2])) is None or queued.number != due[0][1]):
            heappop(due)
        return due[0][0] if due and self._there_since_s is not None else inf

    def check(self) -> None:
        """Assert that only what is in flight is unstarted, that it sums up, and that all that waits has its time."""
        gone = [request for request in self._unstarted if request not in self._core.ledger.in_flight]
        assert not gone, f"requests {gone} have ended and are counted as not started"
        costs = [0.0] * NUM_LENGTHS
        for length, cost, _ in self._unstarted.values():
            costs[length] += cost
        close = all(abs(one - other) <= 1e-6 * max(1.0, one) for one, other in zip(costs, self._by_length, strict=True))
        assert close, "the cost of what has no token yet does not sum up"
        if self._fairness is not None and self._there_since_s is not None:
            missing = self._core.queue.waiting.keys() - {request for _, _, request in self._due}
            assert not missing, f"requests {sorted(missing)} wait, and it is not known until when they can be in time"

    # --- inside ---------------------------------------------------------------------------------------------------

    def _refusal(self, asked: Arrived | Queued, arrived_at_s: float, waiting_cost: float, now: float) -> Refuse | None:
        if self._there_since_s is None:
            return None
        total_s = now - self._since_s(arrived_at_s) + self._wait_s(asked, waiting_cost)
        if total_s <= self._promise_s(asked) or not self._is_real(asked, now):
            return None
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
            length <= last and self._since_s(arrived_at_s) <= before_s
            for length, _, arrived_at_s in self._unstarted.values()
        )

    def _wait_s(self, asked: Arrived | Queued, waiting_cost: float) -> float:
        """From now to its first token, its own prompt not counted; 0 until the speed has been measured."""
        if not self.per_s:
            return 0.0
        return SPARE * max(0.0, waiting_cost + sum(self._by_length[: self._last(asked) + 1])) / self.per_s

    def _last(self, asked: Arrived | Queued) -> int:
        """The longest of the lengths that start before it."""
        return _length(asked.prompt_tokens) if self._shortest_first else NUM_LENGTHS

    def _late(self, asked: Arrived | Queued, total_s: float) -> Refuse:
        rules = self._core.rules
        # Once so much of what is before it is gone, the same request is in time.
        retry_s = (total_s - self._promise_s(asked)) * jitter(asked.request)
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
        self._due = []
        if self._fairness is not None and self._there_since_s is not None:
            self._due = [self._entry(queued) for queued in self._core.queue.waiting.values()]
            heapify(self._due)

    def _count_time(self, now: float) -> None:
        """The time until now was spent on what is there now."""
        if self._there_since_s is not None and self._is_busy:
            self._busy_s += now - max(self._counted_until_s, self._there_since_s)
        self._counted_until_s = now

    def _take_out(self, request: int) -> None:
        length, cost, _ = self._unstarted.pop(request)
        self._by_length[length] -= cost
        if not self._unstarted:
            self._by_length = [0.0] * NUM_LENGTHS


def _length(prompt_tokens: int) -> int:
    """The length's place among those told apart: its bits, and the three after the highest."""
    shift = max(0, prompt_tokens.bit_length() - 4)
    return min(8 * shift + (prompt_tokens >> shift), NUM_LENGTHS - 1)
