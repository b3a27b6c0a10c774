"""What a request that waits is told: how many go before it, and for how long it may wait.

Estimates, by what can be had without looking at the others that wait; nothing is decided by them.
"""

from typing import TYPE_CHECKING

from policies.admission.drain import ServiceRate, jitter
from policies.admission.nodes import Queued
from policies.commands import Queue

if TYPE_CHECKING:
    from policies.admission.core import AdmissionCore


def expectation(queued: Queued, core: "AdmissionCore") -> Queue:
    """What to tell the newest request, which waits."""
    queue, rate, rules = core.queue, core.rate, core.rules
    kind, ttl_s = rules.fairness.kind, rules.queue.ttl_s
    tenant = queued.leaf.path[-1]
    num_waiting, num_own = len(queue.waiting), tenant.num_waiting
    before = position(
        by_arrival=kind == "fcfs", num_waiting=num_waiting, num_own=num_own, num_backlogged=queue.num_backlogged
    )
    # Its own cost is among what must be served, because room for it must come free.
    served_in_s = rate.time_for_s(core.queued_cost * (before + 1) / num_waiting)
    wait_s = min(1.0 if served_in_s is None else served_in_s * jitter(queued.request), ttl_s)
    if kind == "vtc" and num_own == 1 and not tenant.num_in_flight:
        # Read only here, where the theorem of it holds.
        most_s = longest_wait_s(rate, core.bound, max(2, queue.num_backlogged))
        wait_s = wait_s if most_s is None else min(wait_s, most_s)
    return Queue(queued.request, before, round(wait_s, 3), core.intake.states(queued.request))


def position(*, by_arrival: bool, num_waiting: int, num_own: int, num_backlogged: int) -> int:
    """Requests expected to be released before the newest one.

    By arrival: all that wait. Else every tenant that waits is expected to have as many released as this one, until
    the turn comes: equal weights and sizes, nobody ahead of the others. All counts include the newest request.
    """
    if by_arrival:
        return num_waiting - 1
    return min(num_waiting, num_own * num_backlogged) - 1


def longest_wait_s(rate: ServiceRate, bound: float, num_tenants: int) -> float | None:
    """VTC's Theorem 4.11: a tenant of which nothing waits or is in flight has its next request released within
    2 (n - 1) U / a, with n tenants, bound U and capacity a; None: the capacity is not known.
    """
    return rate.time_for_s(2 * (num_tenants - 1) * bound)
