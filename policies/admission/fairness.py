"""Virtual token counters (Sheng et al., OSDI 2024) over a tree: who is released next.

Owns the backlog, the counter of every node, and the lift that turns unused credit into none. Knows weights and cost;
does not know blocks, classes or prices.

Each node has a counter of charged service (of a tenant: divided by its weight). A node that joins the backlog of its
parent is lifted to the smallest counter there (with an empty backlog: to the counter of the child released last), and
the walk to the next request takes the backlogged child with the smallest counter at every node. Counters are kept
whatever the kind, and survive a change of it.
"""

from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush, heapreplace

from policies.admission.nodes import Branch, Leaf, Node, Queued
from policies.admission.order import Order
from policies.document.fairness import Fairness, Level

REBASE_ABOVE = 2.0**40
"""Counters are shifted down once the smallest passes this: a float keeps steps of 2^-12 exact up to there."""


class FairQueue:
    """The backlog of all tenants.

    A heap holds one valid entry for each backlogged child of a node. Counters only grow between pushes (a refund pushes
    again), so an entry's key never exceeds the real one, and refreshing the top until it is current finds the minimum
    in O(log n).
    """

    def __init__(self, order: Order, levels: tuple[Level, ...] = ("tenant",)) -> None:
        self.order = order
        self.levels = levels
        self.root = Branch("", None)
        self.waiting: OrderedDict[int, Queued] = OrderedDict()
        """Every waiting request by id, oldest first."""
        self.smallest_weight = 1.0
        self.num_lifts = 0
        self.lifted = 0.0
        """By all lifts together, in cost units per weight."""
        self.floors: dict[Node, float] = {}
        """The smallest counter of a backlogged child of a node at any other replica."""
        self.num_replicas = 1
        self.staleness = 0.0
        """As in `CountersShared`."""
        self.idle_ttl_s = 3600.0
        self.idle: OrderedDict[Node, None] = OrderedDict()
        """Every idle node, the longest idle first."""
        self._stamps = 0

    @property
    def accounts(self) -> dict[str, Node]:
        """Tenants known, by name, in the order in which they came."""
        return self.root.children

    @property
    def num_backlogged(self) -> int:
        """Tenants with something waiting."""
        return self.root.num_backlogged

    @property
    def last_left(self) -> Node | None:
        """Tenant of the most recently released request."""
        return self.root.last_left

    def follow(self, fairness: Fairness, order: Order, before: Fairness | None, now: float) -> bool:
        """Another policy is in force; counters stay as they are. A kind goes on with what it remembers as long as the
        document says the same of it. True: the levels are others, and whatever is in flight must be adopted anew.
        """
        self.idle_ttl_s = fairness.idle_ttl_s
        reshaped = fairness.levels != self.levels
        if reshaped:
            self._reshape(fairness.levels, now)
        same = before is not None and (before.kind, before.quantum_tokens) == (fairness.kind, fairness.quantum_tokens)
        if reshaped or not same:
            self.order = order
            for node in self.root.children.values():
                node.on_ring = False
            order.follow(self)
        return reshaped

    def leaf(self, tenant: str, project: str = "default", key: str = "") -> Leaf:
        """Where requests of this key wait; opened at counter 0 if it is not known."""
        names = {"tenant": tenant, "project": project, "key": key}
        *above, lowest = self.levels
        branch = self.root
        for level in above:
            child = branch.children.get(names[level])
            if child is None:
                child = branch.children[names[level]] = Branch(names[level], branch)
            assert isinstance(child, Branch)
            branch = child
        leaf = branch.children.get(names[lowest])
        if leaf is None:
            leaf = branch.children[names[lowest]] = Leaf(names[lowest], branch)
        assert isinstance(leaf, Leaf)
        return leaf

    def together(self, bound: float) -> float:
        """What bounds the counters of all replicas, where this bounds the counters of each: M is the sum of their
        windows (F11), and charges are known late (F12).
        """
        return bound * self.num_replicas + self.staleness

    def give(self, node: Node, amount: float) -> None:
        """Another replica has charged a node so much."""
        node.counter += amount
        node.given += amount
        if node.num_waiting:
            self._enter(node)
        if amount < 0:
            self.order.eased(node)
        self.offer(node)

    def push(self, queued: Queued) -> None:
        """A request joins the backlog; its tenant, project and key are lifted where they were not in it."""
        leaf = self.leaf(queued.tenant, queued.project, queued.key)
        if self.order.lifts:
            for node in leaf.path:
                if node.num_waiting:
                    break
                level = self._lift_level(node)
                if level > node.counter:
                    lift = level - node.counter
                    node.credit += lift
                    node.given += lift
                    node.counter = level
                    self.num_lifts += 1
                    self.lifted += lift
        self._insert(queued, leaf)

    def remove(self, queued: Queued) -> None:
        """A request leaves the backlog: released, refused or withdrawn."""
        leaf = queued.leaf
        del self.waiting[queued.request]
        leaf.take_out(queued)
        some_left = False
        for node in leaf.path:
            node.num_waiting -= 1
            if not node.num_waiting:
                _emptied(node.above, node)
                self.order.eased(node)
                some_left = True
            elif some_left:
                # What it has next now may be older than what it had, although its counter is the same.
                self._enter(node)

    def leave(self, queued: Queued, now: float) -> None:
        """`remove`, because the request is released: its tenant is now the last that left."""
        leaf = queued.leaf
        del self.waiting[queued.request]
        leaf.take_out(queued)
        node: Node = leaf
        some_left = False
        while (branch := node.parent) is not None:
            node.num_waiting -= 1
            if not node.num_waiting:
                _emptied(branch, node)
                some_left = True
            elif some_left:
                self._enter(node)  # as in `remove`: a release may cost nothing
            node.num_in_flight += 1
            before = branch.last_left
            if before is not node:
                branch.last_left = node
                if before is not None and not before.num_in_flight and not before.num_waiting:
                    self._rest(before, now)
                    self._forget(branch)
            node = branch

    def adopt(self, leaf: Leaf) -> None:
        """A request in flight belongs here, although it never waited here."""
        for node in leaf.path:
            node.num_in_flight += 1
            self.idle.pop(node, None)

    def end(self, leaf: Leaf, now: float) -> None:
        """A request in flight ended."""
        for node in leaf.path:
            node.num_in_flight -= 1
        self.retire(leaf, now)

    def next(self) -> Queued | None:
        """The next in order."""
        return self.order.next(self)

    def least(self, branch: Branch | None = None) -> Node | None:
        """The backlogged child (of the root: tenant) with the smallest (counter, age of what it has next)."""
        branch = self.root if branch is None else branch
        if not branch.num_backlogged:
            return None
        self.choice(branch)
        return branch.heap[0][3] if branch.sole is None else branch.sole

    def choice(self, node: Node) -> Queued:
        """The request that is next of a backlogged node by counters.

        Raises:
            LookupError: nothing waits there.
        """
        while (sole := node.sole) is not None:
            node = sole
        if node.head is not None:
            return node.head
        if isinstance(node, Branch):
            return self._choice(node)
        raise LookupError(f"nothing of {node.id} waits")

    def _choice(self, branch: Branch) -> Queued:
        heap = branch.heap
        while heap:
            counter, number, stamp, node = heap[0]
            if stamp != node.stamp:
                heappop(heap)
                continue
            lowest = node
            while (sole := lowest.sole) is not None:
                lowest = sole
            queued = lowest.head
            if queued is None:
                queued = self.choice(lowest)
            if counter == node.counter and number == queued.number:
                return queued
            heapreplace(heap, (node.counter, queued.number, stamp, node))
        raise LookupError(f"nothing of {branch.id or 'anybody'} waits")

    def refund(self, leaf: Leaf, weight: float, amount: float) -> None:
        """Take back part of a charge, in cost units; `weight` is the one that it was charged with."""
        for node in leaf.path:
            node.counter -= amount / weight if node.parent is self.root else amount
            if node.num_waiting:
                self._enter(node)
            self.order.eased(node)

    def retire(self, leaf: Leaf, now: float) -> None:
        """A request of this leaf is gone: forget what no later decision can depend on.

        An idle counter at or below the level to which a joining node is lifted is restored by that lift, so dropping it
        changes no order (fairness specification, 6.6) as long as the level only grows. A refund or a withdrawal can
        lower it; then the node comes back at the level itself, which the bound allows. The last child that left defines
        the level and stays. What is owed above the level is forgotten after `idle_ttl_s`.
        """
        for node in leaf.path:
            if node.is_idle:
                self._rest(node, now)
            self._forget(node.above)
        while self.idle:
            node = next(iter(self.idle))
            if node.idle_since_s + self.idle_ttl_s > now:
                return
            if node is node.above.last_left or node.on_ring:
                self.idle.move_to_end(node)
                node.idle_since_s = now
            else:
                self._drop(node)

    def offer(self, node: Node) -> None:
        """A node may be forgotten, if it is idle, once the level passes its counter."""
        if node.is_idle:
            self._stamps += 1
            heappush(node.above.idle, (node.counter, self._stamps, node))

    def _reshape(self, levels: tuple[Level, ...], now: float) -> None:
        """Divide over other levels from now on: tenants keep their counters, all below them begin equal."""
        tenants, queued, last_left = self.root.children, list(self.waiting.values()), self.root.last_left
        self.levels = levels
        self.root = Branch("", None)
        self.idle.clear()
        for name, before in tenants.items():
            tenant = (Leaf if len(levels) == 1 else Branch)(name, self.root)
            self.root.children[name] = tenant
            tenant.counter, tenant.weight, tenant.given = before.counter, before.weight, before.given
            self._rest(tenant, now)
        if last_left is not None:
            self.root.last_left = self.root.children.get(last_left.name)
        self.waiting.clear()
        for one in queued:
            self._insert(one, self.leaf(one.tenant, one.project, one.key))

    def backlogged(self) -> Iterator[Node]:
        """Tenants with waiting requests, in no order that means anything."""
        return iter(self.root.backlogged())

    def gap(self, branch: Branch | None = None) -> float:
        """Largest difference between the counters of backlogged children (of the root: tenants); O(backlogged)."""
        counters = [node.counter for node in (self.root if branch is None else branch).backlogged()]
        return max(counters) - min(counters) if counters else 0.0

    def _lift_level(self, node: Node) -> float:
        return self._level(node.above, otherwise=node.counter)

    def _level(self, branch: Branch, otherwise: float = 0.0) -> float:
        """The smallest counter of a backlogged child, here or at another replica."""
        least = self.least(branch)
        others = self.floors.get(branch) if self.floors else None
        if others is not None:
            return others if least is None else min(least.counter, others)
        least = least or branch.last_left
        return otherwise if least is None else least.counter

    def _insert(self, queued: Queued, leaf: Leaf) -> None:
        queued.leaf = leaf
        tenant = leaf.path[-1]
        tenant.weight = queued.weight
        self.smallest_weight = min(self.smallest_weight, queued.weight)
        joins = not tenant.num_waiting
        leaf.append(queued)
        self.waiting[queued.request] = queued
        for node in leaf.path:
            if not node.num_waiting:
                if node.is_idle:
                    self.idle.pop(node, None)
                node.above.num_backlogged += 1
                self._enter(node)
            node.num_waiting += 1
        if joins:
            tenant.joined = queued.number
            self.order.joined(tenant)

    def _enter(self, node: Node) -> None:
        """Give a backlogged child its entry. From the leaf upwards: what a child has next must be known."""
        branch = node.above
        if branch.num_backlogged == 1:
            branch.heap.clear()
            branch.sole = node
            return
        if branch.sole is not None:
            alone, branch.sole = branch.sole, None
            if alone is not node:
                self._heap_in(branch, alone)
        self._heap_in(branch, node)
        _compact(branch)

    def _heap_in(self, branch: Branch, node: Node) -> None:
        self._stamps += 1
        node.stamp = self._stamps
        heappush(branch.heap, (node.counter, self.choice(node).number, node.stamp, node))

    def _rest(self, node: Node, now: float) -> None:
        self.offer(node)
        if node not in self.idle:
            self.idle[node] = None
            node.idle_since_s = now

    def _forget(self, branch: Branch) -> None:
        idle = branch.idle
        if not idle:
            return
        level = self._level(branch)
        while idle and idle[0][0] <= level:
            counter, _, node = heappop(idle)
            current = branch.children.get(node.name) is node and node.is_idle and node.counter == counter
            if current and node is not branch.last_left and node.is_bare and not self.order.keeps(node):
                self._drop(node)
        if level > REBASE_ABOVE:
            self._rebase(branch, level)

    def _drop(self, node: Node) -> None:
        del node.above.children[node.name]
        below: list[Node] = [node]
        for one in below:
            self.idle.pop(one, None)
            if isinstance(one, Branch):
                below += one.children.values()

    def _rebase(self, branch: Branch, level: float) -> None:
        branch.shifted += level
        if branch in self.floors:
            self.floors[branch] -= level
        for node in branch.children.values():
            node.counter -= level
            node.credit -= level
            node.given -= level
        branch.idle = [(node.counter, stamp, node) for _, stamp, node in branch.idle if node.is_idle]
        heapify(branch.idle)
        nodes, branch.heap = branch.backlogged(), []
        for node in nodes:
            self._enter(node)


def _emptied(branch: Branch, node: Node) -> None:
    """Nothing of a child waits any more."""
    node.stamp = 0
    branch.num_backlogged -= 1
    if branch.num_backlogged:
        _compact(branch)
    else:
        branch.sole = None
        branch.heap.clear()


def _compact(branch: Branch) -> None:
    # Superseded entries go when they reach the top; this bounds those that never do.
    if len(branch.heap) > 2 * branch.num_backlogged + 64:
        branch.heap = [entry for entry in branch.heap if entry[2] == entry[3].stamp]
        heapify(branch.heap)
