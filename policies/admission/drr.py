"""Adapted deficit round robin (`fairness.kind: drr`; VTC's authors, after Shreedhar & Varghese, SIGCOMM 1995): tenants
take turns, and may go into debt.

Owns the turn. A tenant's deficit is its credit less its counter, so whatever is charged or given back counts here too.
A tenant in debt is passed round after round, each worth a quantum: how many rounds follows from the debt, so it is
looked at again when they are over, and what they were worth is added then. A turn costs O(log tenants), whatever the
quantum. Within a tenant the smallest counter goes next. No bound is promised.
"""

import sys
from math import ceil, floor, inf, nextafter

from policies.admission.fairness import FairQueue
from policies.admission.nodes import Node, Queued
from policies.admission.ring import Ring

WINDOWS_PER_QUANTUM = 1 / 20
LARGEST = sys.float_info.max


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
        self._ring = Ring()
        self._turn: Node | None = None
        """Whose turn has begun in this round of releases; at the front of the ring."""
        self._stopped: Node | None = None
        """Whose request the window refused."""

    def follow(self, queue: FairQueue) -> None:
        """Tenants that wait take turns in the order of what they have next; nobody has a deficit yet."""
        self._ring = Ring()
        self._turn = self._stopped = None
        for tenant in queue.accounts.values():
            tenant.credit = tenant.counter
        for tenant in sorted(queue.backlogged(), key=lambda node: queue.choice(node).number):
            self.joined(tenant)

    def size(self, window_tokens: int) -> None:
        """The quantum follows the window unless it was declared."""
        if self._declared is not None:
            return
        quantum = max(window_tokens * WINDOWS_PER_QUANTUM, 1.0)
        if quantum == self._quantum:
            return
        members = list(self._ring)
        for tenant in members:
            self._settle(tenant)
        self._quantum = quantum
        for tenant in members:
            self._look_after(tenant)

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
            self._ring.join(tenant)
            self._look_after(tenant)

    def eased(self, node: Node) -> None:
        """If it is a tenant of the ring, its rounds in debt may be over sooner."""
        if node.on_ring:
            self._settle(node)
            self._look_after(node)

    def deficit(self, node: Node) -> float:
        """With the rounds in which it was passed since it was looked at."""
        passed = self._ring.rounds(node) if node.on_ring else 0
        return node.credit + passed * self._quantum - node.counter

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
        while True:
            tenant, num_rounds = self._ring.first()
            in_debt = self._rounds_in_debt(tenant)
            if num_rounds <= in_debt:
                # It was charged since, and has further rounds to wait.
                self._ring.look_after(tenant, in_debt)
                continue
            self._ring.turn_to(tenant)
            self._settle(tenant)
            deficit = tenant.credit - tenant.counter
            if tenant is self._stopped and deficit < 0:
                self._stopped = None
            else:
                if deficit <= 0:
                    self._add_quantum(tenant)
                if tenant.credit > tenant.counter or (not tenant.num_waiting and tenant.credit == tenant.counter):
                    return tenant
            self._pass(tenant)

    def _end_turn(self, queue: FairQueue, tenant: Node) -> None:
        self._turn = None
        if tenant.num_waiting or tenant.credit < tenant.counter:
            self._pass(tenant)
        else:
            # Credit that is not used is not kept.
            tenant.credit = tenant.counter
            tenant.on_ring = False
            self._ring.leave(tenant)
            queue.offer(tenant)

    def _pass(self, tenant: Node) -> None:
        self._ring.passed(tenant)
        self._look_after(tenant)

    def _look_after(self, tenant: Node) -> None:
        self._ring.look_after(tenant, self._rounds_in_debt(tenant))

    def _settle(self, tenant: Node) -> None:
        tenant.credit += self._ring.rounds(tenant) * self._quantum
        self._ring.know(tenant)

    def _add_quantum(self, tenant: Node) -> None:
        before = tenant.credit
        tenant.credit += self._quantum
        if tenant.credit == before:
            # Beside this counter a float cannot tell so small a quantum: the debt would never end.
            tenant.credit = nextafter(tenant.counter, inf)

    def _rounds_in_debt(self, tenant: Node) -> int:
        """Rounds, from the last that it knows of, that leave it in the ring without a deficit: one with nothing waiting
        leaves as soon as it owes nothing.
        """
        if tenant is self._stopped:
            return 0
        owed = min(max(0.0, (tenant.counter - tenant.credit) / self._quantum), LARGEST)
        return floor(owed) if tenant.num_waiting or not owed else ceil(owed) - 1

    def check(self, queue: FairQueue) -> None:
        """As `Order.check`: whoever waits has a seat, and nobody is passed who would have a turn."""
        self._ring.check()
        seated = list(self._ring)
        assert all(tenant.on_ring for tenant in seated), "a tenant has a seat in the ring and does not know it"
        assert len(seated) == sum(tenant.on_ring for tenant in queue.accounts.values()), "a tenant lost its seat"
        assert all(tenant.on_ring for tenant in queue.backlogged()), "a tenant waits and takes no turns"
        for tenant in seated:
            rounds = self._rounds_in_debt(tenant)
            assert self._ring.waits(tenant) <= rounds, f"{tenant.id} owes nothing after {rounds} rounds and is passed"
