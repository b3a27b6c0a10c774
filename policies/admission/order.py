"""What a kind of fairness is asked: `policies.admission.kinds` and `drr` answer."""

from typing import TYPE_CHECKING, Protocol

from policies.admission.nodes import Node, Queued

if TYPE_CHECKING:
    from policies.admission.fairness import FairQueue


class Order(Protocol):
    """A kind of fairness: which waiting request goes next. Whoever it names and does not fit blocks everybody."""

    @property
    def reason(self) -> str:
        """Why a request was released, in two words."""

    @property
    def lifts(self) -> bool:
        """Whether a node that joins the backlog gives up the service that it did not use."""

    def follow(self, queue: "FairQueue") -> None:
        """It is in force from now on, over this backlog."""

    def size(self, window_tokens: int) -> None:
        """The window has this size from now on."""

    def begin(self) -> None:
        """A round of releases begins."""

    def next(self, queue: "FairQueue") -> Queued | None:
        """The next in order; None if nothing waits. Asking again without an event in between answers the same."""

    def refused(self) -> None:
        """The window has no room for the next: the round of releases ends."""

    def joined(self, tenant: Node) -> None:
        """A tenant joined the backlog."""

    def eased(self, node: Node) -> None:
        """A node's counter fell, or nothing of it waits any more and nothing of it was released."""

    def deficit(self, node: Node) -> float:
        """What a node has left of its turns, cost units; it goes on with that after a restart."""

    def keeps(self, node: Node) -> bool:
        """Whether it remembers more of an idle node than its counter."""

    def check(self, queue: "FairQueue") -> None:
        """Assert what must hold between events."""
