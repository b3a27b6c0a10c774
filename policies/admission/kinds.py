"""The kinds of fairness that keep nothing but what the queue keeps.

Owns which waiting request goes next under each. Deficit round robin is in `drr.py`.
"""

from policies.admission.fairness import FairQueue
from policies.admission.nodes import Node, Queued


class Stateless:
    """A kind that remembers nothing from one request to the next."""

    lifts = True

    def follow(self, queue: FairQueue) -> None:
        """Nothing to take over."""

    def size(self, window_tokens: int) -> None:
        """Nothing depends on it."""

    def begin(self) -> None:
        """Every round is alike."""

    def refused(self) -> None:
        """The same request is next in the next round."""

    def joined(self, tenant: Node) -> None:
        """The queue knows."""

    def eased(self, node: Node) -> None:
        """The queue knows."""

    def deficit(self, node: Node) -> float:
        """Of a kind that takes turns, if one was in force before."""
        return node.credit - node.counter

    def check(self, queue: FairQueue) -> None:
        """There is nothing of its own to go wrong."""

    def keeps(self, node: Node) -> bool:  # noqa: ARG002  the same for all
        """Counters are all there is."""
        return False


class LeastCounter(Stateless):
    """`vtc`: down the tree, at every node to the backlogged child with the smallest counter."""

    reason = "least counter"

    def next(self, queue: FairQueue) -> Queued | None:
        """The oldest request of that leaf."""
        return queue.choice(queue.root) if queue.root.num_backlogged else None


class LeastServed(LeastCounter):
    """`lcf`: the same without the lift. Whoever was away has credit for all that time."""

    lifts = False


class Oldest(Stateless):
    """`fcfs`: by arrival, whoever sent it. Counters are lifted, so that another kind can go on from them."""

    reason = "oldest"

    def next(self, queue: FairQueue) -> Queued | None:
        """The oldest request of all."""
        return next(iter(queue.waiting.values())) if queue.waiting else None
