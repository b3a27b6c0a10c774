"""Virtual token counters (Sheng et al., OSDI 2024): who is released next.

Owns the backlog, the counter of every tenant, and the lift that turns unused credit into none. Knows tenants, weights
and cost; does not know blocks, classes or time.

Each tenant has a counter of charged service divided by its weight. A tenant that joins the backlog is lifted to the
smallest counter there (with an empty backlog: to the counter of the tenant released last), and the backlogged tenant
with the smallest counter goes next. Counters and lifts are kept whatever the selection rule, so that they survive a
change of `fairness.kind`.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush, heapreplace

REBASE_ABOVE = 2.0**40
"""Counters are shifted down once the smallest passes this: a float keeps steps of 2^-12 exact up to there."""


class Account:
    """One tenant's counter and backlog."""

    __slots__ = ("counter", "name", "num_in_flight", "queue", "stamp", "weight")

    def __init__(self, name: str, weight: float) -> None:
        self.name = name
        self.weight = weight
        self.counter = 0.0
        """Charged service / weight, subject to lifts."""
        self.queue: OrderedDict[int, Queued] = OrderedDict()
        """Waiting requests by id, oldest first; non-empty means backlogged."""
        self.num_in_flight = 0
        self.stamp = 0
        """Of its one valid entry in the heap; 0: none, because it is not backlogged."""

    @property
    def is_idle(self) -> bool:
        """Nothing waits and nothing is in flight."""
        return not self.queue and not self.num_in_flight


class Queued:
    """A request that waits."""

    __slots__ = (
        "account",
        "allowed_classes",
        "arrived_at_s",
        "max_output_tokens",
        "num_choices",
        "number",
        "prompt_tokens",
        "request",
        "service_tier",
        "tier",
        "weight",
    )

    def __init__(
        self,
        request: int,
        number: int,
        account: Account,
        *,
        prompt_tokens: int,
        max_output_tokens: int,
        num_choices: int,
        arrived_at_s: float,
        weight: float,
        tier: str,
        service_tier: str | None,
        allowed_classes: tuple[str, ...],
    ) -> None:
        self.request = request
        self.number = number
        """Position in the order of arrival: breaks every tie."""
        self.account = account
        self.prompt_tokens = prompt_tokens
        self.max_output_tokens = max_output_tokens
        """Of one choice."""
        self.num_choices = num_choices
        self.arrived_at_s = arrived_at_s
        self.weight = weight
        """The tenant's when the request arrived: its charges are divided by it."""
        self.tier = tier
        self.service_tier = service_tier
        self.allowed_classes = allowed_classes

    @property
    def output_tokens(self) -> int:
        """Declared maximum over all choices."""
        return self.num_choices * self.max_output_tokens

    @property
    def size_tokens(self) -> int:
        """Declared final size: what it reserves of the window."""
        return self.prompt_tokens + self.output_tokens


_Entry = tuple[float, int, str, int, Account]
"""Counter, number of the head, tenant, stamp, account: the selection order of VTC."""


class FairQueue:
    """The backlog of all tenants.

    The heap holds one valid entry for each backlogged tenant. Counters only grow between pushes (a refund pushes
    again), so an entry's key never exceeds the real one, and refreshing the top until it is current finds the minimum
    in O(log n).
    """

    def __init__(self) -> None:
        self.waiting: OrderedDict[int, Queued] = OrderedDict()
        """Every waiting request by id, oldest first."""
        self.accounts: dict[str, Account] = {}
        self.num_backlogged = 0
        self.last_left: Account | None = None
        """Tenant of the most recently released request: the level that an empty backlog remembers."""
        self.smallest_weight = 1.0
        self._heap: list[_Entry] = []
        self._idle: list[tuple[float, int, Account]] = []
        self._stamps = 0

    def account(self, name: str) -> Account:
        """The tenant's account, opened at counter 0 if it has none."""
        account = self.accounts.get(name)
        if account is None:
            account = self.accounts[name] = Account(name, 1.0)
        return account

    def push(self, queued: Queued) -> None:
        """A request joins the backlog; a tenant that was not backlogged is lifted."""
        account = queued.account
        account.weight = queued.weight
        self.smallest_weight = min(self.smallest_weight, queued.weight)
        joins = not account.queue
        if joins:
            account.counter = max(account.counter, self._lift_level(account))
        account.queue[queued.request] = queued
        self.waiting[queued.request] = queued
        if joins:
            self.num_backlogged += 1
            self._enter(account)

    def remove(self, queued: Queued) -> None:
        """A request leaves the backlog: released, refused or withdrawn."""
        account = queued.account
        del self.waiting[queued.request]
        del account.queue[queued.request]
        if not account.queue:
            account.stamp = 0
            self.num_backlogged -= 1
            self._compact()

    def leave(self, queued: Queued) -> None:
        """`remove`, because the request is released: its tenant is now the last that left."""
        self.remove(queued)
        queued.account.num_in_flight += 1
        before, self.last_left = self.last_left, queued.account
        if before is not None and before is not self.last_left:
            self.retire(before)

    def least(self) -> Account | None:
        """The backlogged tenant with the smallest (counter, age of head, name)."""
        heap = self._heap
        while heap:
            counter, number, _, stamp, account = heap[0]
            if stamp != account.stamp:
                heappop(heap)
                continue
            head = next(iter(account.queue.values())).number
            if counter == account.counter and number == head:
                return account
            heapreplace(heap, (account.counter, head, account.name, stamp, account))
        return None

    def refund(self, account: Account, amount: float) -> None:
        """Take back part of a charge (already divided by the weight)."""
        account.counter -= amount
        if account.queue:
            self._enter(account)

    def retire(self, account: Account) -> None:
        """An account may have become idle: forget what no later decision can depend on.

        An idle counter at or below the level to which a joining tenant is lifted is restored by that lift, so dropping
        it changes no order (fairness specification, 6.6) as long as the level only grows. A refund or a withdrawal can
        lower it; then the tenant comes back at the level itself, which the bound allows. The last tenant that left
        defines the level and stays.
        """
        if account.is_idle:
            self._stamps += 1
            heappush(self._idle, (account.counter, self._stamps, account))
        if not self._idle:
            return
        level = self._level()
        while self._idle and self._idle[0][0] <= level:
            counter, _, idle = heappop(self._idle)
            current = self.accounts.get(idle.name) is idle and idle.is_idle and idle.counter == counter
            if current and idle is not self.last_left:
                del self.accounts[idle.name]
        if level > REBASE_ABOVE:
            self._rebase(level)

    def backlogged(self) -> Iterator[Account]:
        """Accounts with waiting requests, in the order they were opened."""
        return (account for account in self.accounts.values() if account.queue)

    def gap(self) -> float:
        """Largest difference between the counters of backlogged tenants; O(tenants)."""
        if self.num_backlogged < 2:
            return 0.0
        counters = [account.counter for account in self.backlogged()]
        return max(counters) - min(counters)

    def _lift_level(self, account: Account) -> float:
        least = self.least()
        if least is not None:
            return least.counter
        return account.counter if self.last_left is None else self.last_left.counter

    def _level(self) -> float:
        least = self.least() or self.last_left
        return 0.0 if least is None else least.counter

    def _enter(self, account: Account) -> None:
        self._stamps += 1
        account.stamp = self._stamps
        head = next(iter(account.queue.values())).number
        heappush(self._heap, (account.counter, head, account.name, account.stamp, account))
        self._compact()

    def _compact(self) -> None:
        # Superseded entries go when they reach the top; this bounds those that never do.
        if len(self._heap) > 2 * self.num_backlogged + 64:
            self._heap = [entry for entry in self._heap if entry[3] == entry[4].stamp]
            heapify(self._heap)

    def _rebase(self, level: float) -> None:
        for account in self.accounts.values():
            account.counter -= level
        self._idle = [(account.counter, stamp, account) for _, stamp, account in self._idle if account.is_idle]
        heapify(self._idle)
        self._heap = []
        for account in self.backlogged():
            self._enter(account)

    def check(self) -> None:
        """Assert what must hold between events."""
        listed = sorted(request for account in self.accounts.values() for request in account.queue)
        assert listed == sorted(self.waiting), "a waiting request is not in exactly one tenant's queue"
        assert self.num_backlogged == sum(1 for _ in self.backlogged()), "the number of backlogged tenants is wrong"
        keys = {account.name: key for *key, stamp, account in self._heap if stamp == account.stamp}
        for account in self.backlogged():
            assert account.name in keys, f"backlogged tenant {account.name} cannot be selected"
            key = (keys[account.name][0], keys[account.name][1])
            real = (account.counter, next(iter(account.queue.values())).number)
            assert key <= real, f"the heap overestimates tenant {account.name}"
        assert len(self._heap) <= 2 * self.num_backlogged + 65, "superseded heap entries pile up"


def least_counter(queue: FairQueue) -> Queued | None:
    """VTC: the oldest request of the backlogged tenant with the smallest counter."""
    account = queue.least()
    return None if account is None else next(iter(account.queue.values()))


def oldest(queue: FairQueue) -> Queued | None:
    """FCFS: the oldest request of all."""
    return next(iter(queue.waiting.values())) if queue.waiting else None


Select = Callable[[FairQueue], Queued | None]
SELECTIONS: dict[str, Select] = {"vtc": least_counter, "fcfs": oldest}
"""`fairness.kind`: how the next request is chosen. Whoever is chosen and does not fit blocks everybody."""


def jain(shares: list[float]) -> float:
    """Jain's index: 1 when all shares are equal, 1/n when one has everything; 1 for no shares at all."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0
