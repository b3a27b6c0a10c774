"""What must hold in admission between two events, asserted over the whole core.

Reads everything, changes nothing: after every event in tests, when idle in live.
"""

from collections import Counter
from typing import TYPE_CHECKING

from policies.admission.fairness import FairQueue
from policies.admission.nodes import Branch, Leaf, Node

if TYPE_CHECKING:
    from policies.admission.core import AdmissionCore


def check(core: "AdmissionCore") -> None:
    """Assert the invariants: one place for each request, a window that sums up, counters that can be selected, limits
    taken by nobody who is gone, and no capacity left idle beside a request that could use it.
    """
    check_queue(core.queue)
    core.ledger.check()
    core.ages.check()
    core.lateness.check()
    core.ends.check()
    core.intake.check(core.queue.waiting, core.ledger.in_flight)
    core.sizes.check({*core.queue.waiting, *core.ledger.in_flight, *core.intake.pending})
    twice = core.recovery.unclaimed.keys() & core.intake.taken.keys()
    assert not twice, f"what requests {sorted(twice)} have taken is theirs and unclaimed"
    both = [request for request in core.queue.waiting if request in core.ledger.in_flight]
    assert not both, f"requests {both} are queued and in flight"
    reserved = sum(charge.place.size_tokens for charge in core.ledger.in_flight.values())
    assert reserved == core.window.reserved_tokens, "the window and the ledger disagree on the tokens in flight"
    assert len(core.ledger.in_flight) == core.window.num_requests, "the window and the ledger disagree on requests"
    assert core.window.peak_tokens >= reserved, "the largest window use was missed"
    released = Counter(node for charge in core.ledger.in_flight.values() for node in charge.leaf.path)
    for node, num_released in released.items():
        assert num_released == node.num_in_flight, f"{node.id} has {num_released} requests in flight"
    total = sum(tenant.num_in_flight for tenant in core.queue.accounts.values())
    assert total == len(core.ledger.in_flight), "a tenant counts requests in flight that the ledger does not have"
    assert core.queue.next() is not None or not core.queue.waiting, "something waits and nothing is next"
    idle = waits_and_fits(core)
    assert idle is None, f"request {idle} waits although it fits"


def waits_and_fits(core: "AdmissionCore") -> int | None:
    """The request that is next and could be in flight; work conservation says that there is none."""
    if not core.capacity.num_executors or core.rules.pace.holds_back(core.window):
        return None
    head = core.queue.next()
    if head is None:
        return None
    _, size_tokens = core.sizes.needs(head, core.rules)
    return head.request if core.sizes.fits(head, size_tokens, core.rules) else None


def check_queue(queue: FairQueue) -> None:
    """Assert what must hold between events."""
    queue.order.check(queue)
    nodes: list[Node] = [queue.root]
    for node in nodes:
        if isinstance(node, Branch):
            nodes += node.children.values()
            _check_branch(queue, node)
    listed = sorted(request for node in nodes if isinstance(node, Leaf) for request in node.requests())
    assert listed == sorted(queue.waiting), "a waiting request is not in exactly one queue"
    assert all(node.is_idle for node in queue.idle), "a node that is not idle may be forgotten"


def _check_branch(queue: FairQueue, branch: Branch) -> None:
    children = branch.children.values()
    waiting = [node for node in children if node.num_waiting]
    assert branch.num_backlogged == len(waiting), f"the number of backlogged children of {branch.id} is wrong"
    assert {id(node) for node in branch.backlogged()} == {id(node) for node in waiting}, "a node is not selectable"
    if branch is not queue.root:
        assert branch.num_waiting == sum(node.num_waiting for node in children), f"{branch.id} miscounts waiting"
        in_flight = sum(node.num_in_flight for node in children)
        assert branch.num_in_flight == in_flight, f"{branch.id} miscounts what is in flight"
    for counter, number, stamp, node in branch.heap:
        if stamp == node.stamp:
            real = (node.counter, queue.choice(node).number)
            assert (counter, number) <= real, f"the heap overestimates {node.id}"
    assert len(branch.heap) <= 2 * branch.num_backlogged + 65, "superseded heap entries pile up"
