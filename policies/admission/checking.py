"""What must hold in admission between two events, asserted over the whole core.

Reads everything, changes nothing: after every event in tests, when idle in live.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policies.admission.core import AdmissionCore


def check(core: "AdmissionCore") -> None:
    """Assert the invariants: one place for each request, a window that sums up, counters that can be selected, limits
    taken by nobody who is gone, and no capacity left idle beside a request that could use it.
    """
    core.queue.check()
    core.ledger.check()
    core.intake.check(core.queue.waiting, core.ledger.in_flight)
    both = [request for request in core.queue.waiting if request in core.ledger.in_flight]
    assert not both, f"requests {both} are queued and in flight"
    reserved = sum(charge.size_tokens for charge in core.ledger.in_flight.values())
    assert reserved == core.window.reserved_tokens, "the window and the ledger disagree on the tokens in flight"
    assert len(core.ledger.in_flight) == core.window.num_requests, "the window and the ledger disagree on requests"
    assert core.window.peak_tokens >= reserved, "the largest window use was missed"
    for account in core.queue.accounts.values():
        released = sum(charge.account is account for charge in core.ledger.in_flight.values())
        assert released == account.num_in_flight, f"tenant {account.name} has {released} requests in flight"
    if core.capacity.num_executors and core.queue.waiting:
        head = core.rules.select(core.queue)
        assert head is not None
        assert not core.window.fits(head.size_tokens), f"request {head.request} waits although it fits"
