"""Adapted deficit round robin (`fairness.kind: drr`; VTC's authors): tenants take turns, and may go into debt.

Owns the ring and the turn. A tenant's deficit is its credit less its counter, so whatever is charged or given back
counts here too. Within a tenant the smallest counter goes next. No bound is promised.
"""

from collections import deque
from math import ceil, floor

from policies.admission.fairness import FairQueue
from policies.admission.nodes import Node, Queued

WINDOWS_PER_QUANTUM = 1 / 20


class DeficitRoundRobin:
    """A turn adds a quantum where there is no deficit left, and lasts while there is one and something waits.

    Args:
        quantum: service of a turn, cost units; None: a twentieth of the window.
    """

    reason = "its turn"
    lifts = True

    def __init__(self, quantum: float | None) -> None:
        self._declared = quantum
        self._quantum = 1.0 if quantum is None else quantum
        self._ring: deque[Node] = deque()
        self._turn: Node | None = None
        """Whose turn has begun in this round of releases; at the front of the ring."""
        self._stopped: Node | None = None
        """Whose request the window refused."""

    def follow(self, queue: FairQueue) -> None:
        """Tenants that wait take turns in the order of what they have next; nobody has a deficit yet."""
        self._ring.clear()
        self._turn = self._stopped = None
        for tenant in queue.accounts.values():
            tenant.credit = tenant.counter
        for tenant in sorted(queue.backlogged(), key=lambda node: queue.choice(node).number):
            self.joined(tenant)

    def size(self, window_tokens: int) -> None:
        """The quantum follows the window unless it was declared."""
        if self._declared is None:
            self._quantum = max(window_tokens * WINDOWS_PER_QUANTUM, 1.0)

    def begin(self) -> None:
        """A new round: whoever is at the front begins a turn anew."""
        self._turn = None

    def refused(self) -> None:
        """It stays at the front, and is passed over once if it has been charged into debt until the next round."""
        self._stopped, self._turn = self._turn, None

    def joined(self, tenant: Node) -> None:
        """At the end of the ring, unless it is there still, working off a debt."""
        if not tenant.on_ring:
            tenant.on_ring = True
            self._ring.append(tenant)

    def keeps(self, node: Node) -> bool:
        """A tenant that takes turns still, or owes what the turns after its return will pay."""
        return len(node.path) == 1 and (node.on_ring or node.credit < node.counter)

    def next(self, queue: FairQueue) -> Queued | None:
        """What is next of the tenant whose turn it is."""
        while queue.root.num_backlogged:
            tenant = self._turn or self._next_turn()
            if tenant.num_waiting and tenant.credit > tenant.counter:
                self._turn = tenant
                return queue.choice(tenant)
            self._end_turn(queue, tenant)
        if self._turn is not None:
            self._end_turn(queue, self._turn)
        return None

    def _next_turn(self) -> Node:
        ring = self._ring
        passed = 0
        while True:
            if passed == len(ring):
                self._skip_rounds()
                passed = 0
            tenant = ring[0]
            deficit = tenant.credit - tenant.counter
            if tenant is self._stopped and deficit < 0:
                self._stopped = None
            else:
                if deficit <= 0:
                    tenant.credit += self._quantum
                if tenant.credit > tenant.counter or (not tenant.num_waiting and tenant.credit == tenant.counter):
                    return tenant
            ring.rotate(-1)
            passed += 1

    def _end_turn(self, queue: FairQueue, tenant: Node) -> None:
        self._turn = None
        self._ring.popleft()
        if tenant.num_waiting or tenant.credit < tenant.counter:
            self._ring.append(tenant)
        else:
            # Credit that is not used is not kept.
            tenant.credit = tenant.counter
            tenant.on_ring = False
            queue.offer(tenant)

    def _skip_rounds(self) -> None:
        """All are in debt: as many rounds as leave everybody so are one addition for each."""
        rounds = min(self._rounds_in_debt(tenant) for tenant in self._ring)
        if rounds > 0:
            for tenant in self._ring:
                tenant.credit += rounds * self._quantum

    def _rounds_in_debt(self, tenant: Node) -> int:
        """Rounds that leave it in the ring without a deficit: one with nothing waiting leaves as soon as it owes
        nothing.
        """
        owed = (tenant.counter - tenant.credit) / self._quantum
        return floor(owed) if tenant.num_waiting else ceil(owed) - 1
