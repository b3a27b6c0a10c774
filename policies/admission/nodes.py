"""The tree over which service is divided, and what waits in it.

Owns the shape alone: tenants under the root, and below each the levels that the policy names. A node has one counter;
requests wait at leaves. Knows names, weights and counts; does not know costs, time or who is next.
"""

from collections.abc import Iterable

from policies.events import Arrived


class Queued:
    """A request that waits."""

    __slots__ = (
        "allowed_classes",
        "arrived_at_s",
        "blocked_s",
        "earlier",
        "expected_tokens",
        "key",
        "later",
        "leaf",
        "limits_s",
        "max_output_tokens",
        "num_choices",
        "number",
        "project",
        "prompt_tokens",
        "request",
        "resent",
        "service_tier",
        "tenant",
        "tier",
        "true_tokens",
        "weight",
    )

    leaf: "Leaf"
    """Where it waits; set when it joins the backlog."""

    def __init__(
        self,
        request: int,
        number: int,
        *,
        tenant: str,
        project: str = "default",
        key: str = "",
        prompt_tokens: int,
        max_output_tokens: int,
        num_choices: int = 1,
        arrived_at_s: float = 0.0,
        limits_s: float = 0.0,
        weight: float = 1.0,
        tier: str = "",
        service_tier: str | None = None,
        allowed_classes: tuple[str, ...] = (),
        expected_tokens: int | None = None,
        true_tokens: int | None = None,
        resent: bool = False,
    ) -> None:
        self.request = request
        self.earlier: Queued | None = None
        self.later: Queued | None = None
        """Its neighbours at its leaf."""
        self.number = number
        """Position in the order of arrival: breaks every tie."""
        self.tenant = tenant
        self.project = project
        self.key = key
        self.prompt_tokens = prompt_tokens
        self.max_output_tokens = max_output_tokens
        """Of one choice."""
        self.num_choices = num_choices
        self.arrived_at_s = arrived_at_s
        self.limits_s = limits_s
        """Of the time since: until the store had answered for its limits."""
        self.blocked_s = 0.0
        """Of the time since: while it was next and did not fit; kept by `turns`."""
        self.weight = weight
        """The tenant's when the request arrived: its charges are divided by it."""
        self.tier = tier
        self.service_tier = service_tier
        self.allowed_classes = allowed_classes
        self.expected_tokens = num_choices * max_output_tokens if expected_tokens is None else expected_tokens
        """Output over all choices that it is sized by: the declared maximum, or a bound where nothing was declared."""
        self.true_tokens = self.expected_tokens if true_tokens is None else num_choices * true_tokens
        """Output over all choices; where nobody knows it, what it is sized by."""
        self.resent = resent
        """It was let in before, and whoever had it was lost."""

    @classmethod
    def of(cls, event: Arrived, number: int, expected_tokens: int, *, arrived_at_s: float, now: float) -> "Queued":
        """Of a request that joins the backlog as the number-th."""
        return cls(
            event.request,
            number,
            tenant=event.tenant,
            project=event.project,
            key=event.key,
            prompt_tokens=event.prompt_tokens,
            max_output_tokens=event.max_output_tokens,
            num_choices=event.num_choices,
            arrived_at_s=arrived_at_s,
            limits_s=now - arrived_at_s,
            weight=event.weight,
            tier=event.tier,
            service_tier=event.service_tier,
            allowed_classes=event.allowed_classes,
            expected_tokens=expected_tokens,
            true_tokens=event.output_tokens,
            resent=event.resent,
        )


class Node:
    """A tenant, project or key: its counter, and how much of its subtree waits and is in flight."""

    sole: "Node | None"
    """The only backlogged child, as long as nothing had to be compared; a leaf has none."""
    head: Queued | None
    """The oldest that waits here; nothing waits at a branch."""

    __slots__ = (
        "counter",
        "credit",
        "given",
        "idle_since_s",
        "joined",
        "name",
        "num_in_flight",
        "num_waiting",
        "on_ring",
        "parent",
        "path",
        "stamp",
        "weight",
    )

    def __init__(self, name: str, parent: "Branch | None") -> None:
        self.name = name
        self.parent = parent
        self.path: tuple[Node, ...] = () if parent is None else (self, *parent.path)
        """Itself and all above it, without the root."""
        self.weight = 1.0
        """Of a tenant; all below share equally."""
        self.counter = 0.0
        """Charged service / weight, subject to lifts."""
        self.credit = 0.0
        """Of deficit round robin: the deficit is what is left of it above the counter."""
        self.joined = 0
        """Number of the request with which it last joined the backlog."""
        self.given = 0.0
        """Of the counter, what was not charged here: lifts, and what other replicas have charged."""
        self.on_ring = False
        self.num_waiting = 0
        """Above 0 means backlogged."""
        self.num_in_flight = 0
        self.stamp = 0
        """Of its one valid entry in its parent's heap; 0: none."""
        self.idle_since_s = 0.0

    @property
    def is_idle(self) -> bool:
        """Nothing waits and nothing is in flight."""
        return not self.num_waiting and not self.num_in_flight

    @property
    def is_bare(self) -> bool:
        """Nothing below is worth remembering."""
        return True

    @property
    def id(self) -> str:
        """`tenant`, `tenant/project` or `tenant/project/key`, as far as the levels go."""
        return "/".join(node.name for node in reversed(self.path))

    @property
    def above(self) -> "Branch":
        """The parent of a node that has one.

        Raises:
            ValueError: the root has none.
        """
        if self.parent is None:
            raise ValueError("the root of the fairness tree has no parent")
        return self.parent


class Leaf(Node):
    """The lowest level: requests wait here, first in, first out."""

    __slots__ = ("head", "tail")
    sole = None

    def __init__(self, name: str, parent: "Branch") -> None:
        super().__init__(name, parent)
        self.head = None
        self.tail: Queued | None = None
        """The newest that waits here."""

    def append(self, queued: Queued) -> None:
        """One more waits here."""
        tail = self.tail
        if tail is None:
            self.head = queued
        else:
            tail.later = queued
        queued.earlier, queued.later = tail, None
        self.tail = queued

    def take_out(self, queued: Queued) -> None:
        """One of those that wait here does no longer."""
        earlier, later = queued.earlier, queued.later
        if earlier is None:
            self.head = later
        else:
            earlier.later = later
        if later is None:
            self.tail = earlier
        else:
            later.earlier = earlier
        queued.earlier = queued.later = None

    def requests(self) -> list[int]:
        """What waits here, oldest first."""
        found, queued = [], self.head
        while queued is not None:
            found.append(queued.request)
            queued = queued.later
        return found


Entry = tuple[float, int, int, Node]
"""Counter, number of the request that would be next of this node, stamp, node: the selection order of VTC. No two
backlogged nodes have the same request next, so nothing after the number ever decides.
"""


class Branch(Node):
    """A level above: its children share its service by their counters."""

    __slots__ = ("children", "heap", "idle", "last_left", "num_backlogged", "shifted", "sole")
    head = None

    def __init__(self, name: str, parent: "Branch | None") -> None:
        super().__init__(name, parent)
        self.children: dict[str, Node] = {}
        self.shifted = 0.0
        """By how much the counters of its children were shifted down, all in all."""
        self.num_backlogged = 0
        """Children with something waiting."""
        self.last_left: Node | None = None
        """Child of the most recently released request: the level that an empty backlog remembers."""
        self.heap: list[Entry] = []
        """One valid entry for each backlogged child, unless there is but one."""
        self.sole = None
        self.idle: list[tuple[float, int, Node]] = []
        """Heap of children that may be forgotten once the level passes their counters."""

    @property
    def is_bare(self) -> bool:
        """Nothing below is worth remembering: a single child means the same whatever its counter is."""
        return len(self.children) <= 1 and all(child.is_bare for child in self.children.values())

    def find(self, path: Iterable[str]) -> Node | None:
        """The node at the end of these names, itself at the end of none; None if there is none."""
        node: Node = self
        for name in path:
            child = node.children.get(name) if isinstance(node, Branch) else None
            if child is None:
                return None
            node = child
        return node

    def backlogged(self) -> list[Node]:
        """Children with something waiting, in no order that means anything."""
        if self.sole is not None:
            return [self.sole]
        return [node for _, _, stamp, node in self.heap if stamp == node.stamp]
