"""The counters of the fairness tree as replicas share them: what this one has charged, and what others have.

Reads the core's tree and never changes it: what others did goes to the core as an event, so that a replay needs no
store. A counter in the store is never shifted down; here it is, by what its parent remembers.

Of each node it is remembered how it was when it was told last. What came on top since then is what was charged here,
which adds up over replicas, and lifts, which are levels: two replicas that lift a node lift it once.
"""

from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from policies.admission.fairness import FairQueue
from policies.admission.nodes import Branch, Node
from policies.admission.shared import SEPARATOR, path_of
from policies.events import CountersShared
from services.admission.redis_operations import ExchangeOperation

NODE_ROW = "node:"


class Told(Struct):
    """A node as the store has it, but for what others have done since."""

    node: Node
    value: float
    own: float
    """What was charged here, in that value."""


class SharedCounters:
    """Meets `services.admission.redis_store.Shares`.

    Attributes:
        largest_charge: the most that one tenant was charged here between two exchanges, in cost units over its weight:
            others decided without knowing of it.
    """

    def __init__(self, queue: FairQueue) -> None:
        self.largest_charge = 0.0
        self._queue = queue
        self._told: dict[str, Told] = {}
        self._changed: dict[str, None] = {}
        self._has_begun = False
        self._since = 0
        """The last change that was heard of."""
        self._floors: dict[str, float] = {}
        """What others have told, as the core knows it."""

    def changed(self, names: Iterable[str]) -> None:
        """As `Shares.changed`. What is there at first was restored: the store knows of it."""
        nodes = [name.removeprefix(NODE_ROW) for name in names if name.startswith(NODE_ROW)]
        if self._has_begun:
            self._changed.update(dict.fromkeys(nodes))
            return
        self._has_begun = True
        for name in nodes:
            node = self._find(name)
            if node is not None:
                self._told[name] = Told(node, _value(node), _own(node))

    def ask(self, fresh_ms: int) -> ExchangeOperation:
        """As `Shares.ask`."""
        rows = []
        for name in self._changed:
            node = self._find(name)
            if node is None:
                self._told.pop(name, None)
                continue
            told = self._told_of(name, node)
            charged = _own(node) - told.own
            raised = _value(node) - charged
            if charged or raised != told.value:
                rows.append((name, raised, charged))
                self._told[name] = Told(node, _value(node), _own(node))
                if node.above is self._queue.root:
                    self.largest_charge = max(self.largest_charge, charged)
        self._changed.clear()
        return ExchangeOperation(self._since, rows, self._own_floors(), fresh_ms)

    def told(self, answer: list[Any], num_replicas: int) -> CountersShared | None:
        """As `Shares.told`."""
        self._since, shared, floors = answer
        added = {name: more for name, value in shared if (more := self._more(name, value))}
        known = ((name, self._find(name), floor) for name, floor in floors)
        others = {name: floor - branch.shifted for name, branch, floor in known if isinstance(branch, Branch)}
        staleness = 2 * self.largest_charge * (num_replicas - 1)
        queue = self._queue
        if not added and (others, num_replicas, staleness) == (self._floors, queue.num_replicas, queue.staleness):
            return None
        self._floors = others
        return CountersShared(added, others, num_replicas, staleness)

    def forgotten(self) -> None:
        """As `Shares.forgotten`: everything is told again."""
        self._since = 0
        self._changed.update(dict.fromkeys(self._told))
        for told in self._told.values():
            told.value = -1.0

    def _own_floors(self) -> list[tuple[str, float]]:
        floors = []
        branches = [("", self._queue.root)]
        for name, branch in branches:
            least = self._queue.least(branch)
            # An only child is served whatever its counter is.
            if least is not None and (not name or len(branch.children) > 1):
                floors.append((name, _value(least)))
            branches += [
                (f"{name}{SEPARATOR}{child.name}" if name else child.name, child)
                for child in branch.backlogged()
                if isinstance(child, Branch)
            ]
        return floors

    def _more(self, name: str, value: float) -> float:
        """What a node lacks of what the store says, with what was not told yet on top."""
        node = self._find(name)
        if node is None:
            above = self._find(name.rpartition(SEPARATOR)[0])
            return value - above.shifted if isinstance(above, Branch) else value
        told = self._told_of(name, node)
        untold = _own(node) - told.own
        # It may have been lifted here since it was told.
        value = max(value, _value(node) - untold)
        self._told[name] = Told(node, value, told.own)
        return value + untold - _value(node)

    def _told_of(self, name: str, node: Node) -> Told:
        told = self._told.get(name)
        if told is None or told.node is not node:
            return Told(node, node.above.shifted, 0.0)
        return told

    def _find(self, name: str) -> Node | None:
        return self._queue.root.find(path_of(name))


def _value(node: Node) -> float:
    """As the store has it: never shifted down."""
    return node.counter + node.above.shifted


def _own(node: Node) -> float:
    """What was charged here: neither lifts nor what others have charged."""
    return node.counter - node.given
