"""Service over a tree: splitting gains nothing, every level is fair, and forgetting changes no order."""

import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.admission.checking import check_queue
from policies.admission.core import AdmissionCore
from policies.admission.fairness import FairQueue
from policies.admission.kinds import LeastCounter
from policies.admission.nodes import Branch, Node, Queued
from policies.commands import Release
from policies.document.fairness import Level
from policies.events import Arrived, CapacityChanged, PolicyApplied, RequestFinished, Started, TokensProduced
from tests.policies.admission.worlds import Conditions, World, document, random_trace

ALL: tuple[Level, ...] = ("tenant", "project", "key")
histories = st.integers(min_value=0, max_value=2**32)


def flood(*callers: tuple[str, str, str], levels: Iterable[str] = ALL, rounds: int = 200) -> Counter[tuple[str, str]]:
    """Everybody always has requests waiting; releases by (tenant, key)."""
    core = AdmissionCore()
    released: Counter[tuple[str, str]] = Counter()
    whose: dict[int, tuple[str, str, str]] = {}

    def tell(event: Any) -> list[int]:
        commands = core.handle(event, 0.0)
        core.check()
        released.update((whose[one.request][0], whose[one.request][2]) for one in commands if isinstance(one, Release))
        return [one.request for one in commands if isinstance(one, Release)]

    tell(Started(0.0))
    tell(PolicyApplied(1, document(kind="vtc", window_tokens=20, levels=list(levels))))
    running: list[int] = []
    for number in range(1, 1 + 3 * len(callers)):
        tenant, project, key = whose[number] = callers[number % len(callers)]
        tell(Arrived(number, tenant, "free", 5, 5, project=project, key=key))
    running += tell(CapacityChanged(1, 1000, 100))
    for _ in range(rounds):
        ended = running.pop(0)
        running += tell(TokensProduced([ended]))
        number = len(whose) + 1
        tenant, project, key = whose[number] = whose[ended]
        running += tell(Arrived(number, tenant, "free", 5, 5, project=project, key=key))
        running += tell(RequestFinished(ended, 1))
    return released


def test_a_tenant_split_into_a_hundred_keys_gains_nothing() -> None:
    split = [("split", f"p{number % 7}", f"k{number}") for number in range(100)]
    released = flood(*split, ("whole", "default", "k"))
    whole = released["whole", "k"]
    assert abs(whole - (released.total() - whole)) <= 2


def test_projects_share_a_tenant_and_keys_share_a_project() -> None:
    released = flood(("a", "p", "1"), ("a", "p", "2"), ("a", "q", "3"), ("b", "p", "4"), rounds=400)
    assert [
        round(released[name] / released.total(), 2) for name in (("a", "1"), ("a", "2"), ("a", "3"), ("b", "4"))
    ] == [pytest.approx(share, abs=0.02) for share in (0.125, 0.125, 0.25, 0.5)]


def test_levels_that_are_left_out_do_not_divide() -> None:
    callers = [("a", "p", "1"), ("a", "p", "2"), ("a", "q", "3")]
    assert {flood(*callers, levels=["tenant", "key"])[name] // 10 for name in (("a", "1"), ("a", "3"))} == {6}
    by_arrival = flood(*callers, levels=["tenant"])
    assert max(by_arrival.values()) - min(by_arrival.values()) <= 1


class Brute:
    """The definition over a tree: every counter kept, every queue scanned."""

    def __init__(self) -> None:
        self.counters: dict[tuple[str, ...], float] = {}
        self.waiting: dict[tuple[str, ...], list[Queued]] = {}
        self.last_left: dict[tuple[str, ...], tuple[str, ...]] = {}

    def push(self, queued: Queued) -> None:
        path = (queued.tenant, queued.project, queued.key)
        for depth in (3, 2, 1):
            node, parent = path[:depth], path[: depth - 1]
            self.counters.setdefault(node, 0.0)
            if self.is_backlogged(node):
                continue
            others = [self.counters[one] for one in self.backlogged(parent)]
            last = self.last_left.get(parent)
            level = min(others) if others else self.counters[last] if last is not None else 0.0
            self.counters[node] = max(self.counters[node], level)
        self.waiting.setdefault(path, []).append(queued)

    def is_backlogged(self, node: tuple[str, ...]) -> bool:
        return any(waiting for path, waiting in self.waiting.items() if path[: len(node)] == node)

    def backlogged(self, parent: tuple[str, ...]) -> list[tuple[str, ...]]:
        depth = len(parent) + 1
        here = {path[:depth]: None for path, waiting in self.waiting.items() if waiting and path[: depth - 1] == parent}
        return list(here)

    def next(self, node: tuple[str, ...] = ()) -> Queued:
        if len(node) == 3:
            return self.waiting[node][0]
        child = min(self.backlogged(node), key=lambda one: (self.counters[one], self.next(one).number))
        return self.next(child)

    def leave(self, queued: Queued) -> None:
        path = (queued.tenant, queued.project, queued.key)
        self.waiting[path].remove(queued)
        for depth in (1, 2, 3):
            self.last_left[path[: depth - 1]] = path[:depth]

    def pay(self, queued: Queued, amount: float) -> None:
        path = (queued.tenant, queued.project, queued.key)
        for depth in (1, 2, 3):
            self.counters[path[:depth]] += amount / queued.weight if depth == 1 else amount


class Pair:
    """A queue, and the definition, told the same."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)  # noqa: S311  a seeded history, not a secret
        self.queue = FairQueue(LeastCounter(), ALL)
        self.brute = Brute()
        self.in_flight: list[Queued] = []
        self.num = 0

    def arrive(self) -> None:
        self.num += 1
        tenant = self.draw.randrange(3)
        queued = Queued(
            self.num,
            self.num,
            tenant=f"t{tenant}",
            project=f"p{self.draw.randrange(2)}",
            key=f"k{self.draw.randrange(3)}",
            prompt_tokens=1,
            max_output_tokens=1,
            weight=(0.5, 1.0, 4.0)[tenant],
        )
        self.queue.push(queued)
        self.brute.push(queued)

    def release(self) -> None:
        queued = self.queue.next()
        if queued is None:
            assert not any(self.brute.waiting.values())
            return
        assert queued is self.brute.next()
        self.queue.leave(queued, 0.0)
        self.brute.leave(queued)
        self.in_flight.append(queued)
        self.pay(queued, float(self.draw.randint(1, 9)))

    def pay(self, queued: Queued, amount: float) -> None:
        for node in queued.leaf.path:
            node.counter += amount / queued.weight if len(node.path) == 1 else amount
        self.brute.pay(queued, amount)

    def produce(self) -> None:
        for queued in self.in_flight:
            self.pay(queued, 2.0)

    def end(self) -> None:
        if self.in_flight:
            queued = self.in_flight.pop(self.draw.randrange(len(self.in_flight)))
            self.queue.end(queued.leaf, 0.0)

    def refund(self) -> None:
        if self.in_flight:
            queued = self.draw.choice(self.in_flight)
            self.queue.refund(queued.leaf, queued.weight, 1.0)
            self.brute.pay(queued, -1.0)

    def withdraw(self) -> None:
        if self.queue.waiting:
            queued = self.draw.choice(list(self.queue.waiting.values()))
            self.queue.remove(queued)
            self.brute.waiting[queued.tenant, queued.project, queued.key].remove(queued)
            self.queue.retire(queued.leaf, 0.0)

    def run(self, actions: str, num: int) -> None:
        named = [getattr(self, action) for action in actions.split()]
        burst = 0
        for _ in range(num):
            burst = burst or self.draw.choice([-25, 40])
            burst += 1 if burst < 0 else -1
            self.draw.choice(named if burst > 0 else named[1:])()
            check_queue(self.queue)


@settings(max_examples=40, deadline=None)
@given(seed=histories)
def test_the_order_is_that_of_the_definition_at_every_level(seed: int) -> None:
    pair = Pair(seed)
    pair.queue.retire = lambda _leaf, _now: None  # type: ignore[method-assign]  what is refunded may not be forgotten
    pair.queue._forget = lambda _branch: None  # type: ignore[method-assign]
    pair.run("arrive release produce end refund withdraw", 200)
    for path, counter in pair.brute.counters.items():
        node: Node = pair.queue.root
        for name in path:
            assert isinstance(node, Branch)
            node = node.children[name]
        assert node.counter == counter, path


@settings(max_examples=60, deadline=None)
@given(seed=histories)
def test_forgetting_changes_no_order_at_any_level(seed: int) -> None:
    pair = Pair(seed)
    pair.run("arrive release produce end", 250)
    while pair.queue.waiting:
        pair.release()
        pair.end()


@settings(max_examples=25, deadline=None)
@given(seed=histories, weights=st.booleans())
def test_f10_the_children_of_every_node_stay_within_the_bound(seed: int, weights: bool) -> None:
    def watch(_event: Any, _commands: Any) -> None:
        queue, bound = world.core.queue, world.core.bound
        for tenant in queue.accounts.values():
            assert isinstance(tenant, Branch)
            branches = [tenant, *(node for node in tenant.children.values() if isinstance(node, Branch))]
            for branch in branches:
                # Below a tenant all weigh the same: U itself.
                assert queue.gap(branch) <= bound * queue.smallest_weight + 1e-9
        assert queue.gap() <= bound + 1e-9

    policy = document(kind="vtc", window_tokens=60)
    world = World(policy, random_trace(seed, weights=weights, keys=3), Conditions(preempted=0.1), seed=seed)
    world.watchers.append(watch)
    world.run()


FORMULAS: list[dict[str, Any]] = [
    {"kind": "tokens"},
    {"kind": "kv_token_time"},
    {"kind": "quadratic", "a": 1, "b": 1, "c": 0.5, "d": 0.5, "e": 20},
    {"kind": "quadratic", "a": 0, "b": 1},
    {"kind": "table", "prompt_tokens": [1, 20], "output_tokens": [0, 5, 20], "costs": [[0, 2, 9], [4, 40, 100]]},
]


@settings(max_examples=25, deadline=None)
@given(seed=histories, cost=st.sampled_from(FORMULAS))
def test_f8_whatever_a_request_costs_counters_stay_within_the_bound_of_it(seed: int, cost: dict[str, Any]) -> None:
    def watch(_event: Any, _commands: Any) -> None:
        assert world.core.gap_ratio <= 1.0

    trace = random_trace(seed, num_asks=50, keys=2, weights=True)
    world = World(document(kind="vtc", window_tokens=60, cost=cost), trace, Conditions(preempted=0.1), seed=seed)
    world.watchers.append(watch)
    world.run()


def test_tenants_that_came_once_leave_nothing_behind() -> None:
    queue = FairQueue(LeastCounter(), ALL)
    for number in range(1, 5_001):
        queued = Queued(number, number, tenant=f"t{number}", prompt_tokens=1, max_output_tokens=1)
        queue.push(queued)
        queue.leave(queued, 0.0)
        for node in queued.leaf.path:
            node.counter += 1.0
        queue.end(queued.leaf, 0.0)
        assert len(queue.accounts) <= 2
        assert len(queue.root.heap) == 0
    assert len(queue.idle) <= 6


def test_what_an_idle_tenant_owes_is_forgotten_after_a_while() -> None:
    queue = FairQueue(LeastCounter(), ALL)
    queue.idle_ttl_s = 100.0
    for number, tenant in enumerate(["owes", "waits", "waits"], start=1):
        queue.push(Queued(number, number, tenant=tenant, prompt_tokens=1, max_output_tokens=1))
    for number, end_s in ((1, 10.0), (2, 20.0)):
        queued = queue.waiting[number]
        queue.leave(queued, 0.0)
        queued.leaf.path[-1].counter += 50.0 / number
        queue.end(queued.leaf, end_s)
    assert "owes" in queue.accounts
    third = queue.waiting[3]
    queue.leave(third, 105.0)
    queue.end(third.leaf, 109.0)
    assert "owes" in queue.accounts
    queue.retire(third.leaf, 110.0)
    assert list(queue.accounts) == ["waits"]
    check_queue(queue)


def test_other_levels_keep_what_tenants_have_and_what_waits_and_runs() -> None:
    core = AdmissionCore()
    core.handle(Started(0.0), 0.0)
    core.handle(PolicyApplied(1, document(kind="vtc", window_tokens=20)), 0.0)
    core.handle(CapacityChanged(1, 1000, 100), 0.0)
    for number, key in enumerate("abcd", start=1):
        core.handle(Arrived(number, "one", "free", 5, 5, project="p", key=key), 0.0)
    core.handle(Arrived(5, "two", "free", 5, 5), 0.0)
    core.handle(TokensProduced([1, 2]), 0.0)
    before = {name: node.counter for name, node in core.queue.accounts.items()}
    for revision, levels in enumerate((["tenant"], ["tenant", "key"], ["tenant", "project", "key"]), start=2):
        core.handle(PolicyApplied(revision, document(kind="vtc", window_tokens=20, levels=levels)), 0.0)
        core.check()
        assert {name: node.counter for name, node in core.queue.accounts.items()} == before
    released = [one.request for one in core.handle(RequestFinished(1, 1), 0.0) if isinstance(one, Release)]
    core.check()
    assert released == [5]
