"""Deficit round robin against the loop of its definition (fairness specification, 3.3)."""

import random
from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.admission.checking import check_queue
from policies.admission.cost import Prices
from policies.admission.drr import DeficitRoundRobin
from policies.admission.fairness import FairQueue
from policies.admission.ledger import Charge, Ledger
from policies.admission.nodes import Node, Queued
from policies.admission.ring import Ring
from policies.admission.window import Window

PRICES = Prices(1.0, 2.0)


def size_of(queued: Queued) -> int:
    return queued.prompt_tokens + queued.expected_tokens


class Naive:
    """The definition, round after round."""

    def __init__(self, quantum: float) -> None:
        self.quantum = quantum
        self.deficits: dict[str, float] = {}
        self.queues: dict[str, deque[Queued]] = {}
        self.ring: deque[str] = deque()
        self.stopped: str | None = None

    def arrive(self, queued: Queued) -> None:
        self.queues.setdefault(queued.tenant, deque()).append(queued)
        self.deficits.setdefault(queued.tenant, 0.0)
        if queued.tenant not in self.ring:
            self.ring.append(queued.tenant)

    def withdraw(self, queued: Queued) -> None:
        self.queues[queued.tenant].remove(queued)

    def refill(self, room: int) -> list[int]:
        admitted: list[int] = []
        while any(self.queues.values()):
            tenant = self.ring.popleft()
            if tenant == self.stopped and self.deficits[tenant] < 0:
                self.stopped = None
                self.ring.append(tenant)
                continue
            if self.deficits[tenant] <= 0:
                self.deficits[tenant] += self.quantum
            queue = self.queues[tenant]
            while self.deficits[tenant] > 0 and queue:
                if size_of(queue[0]) > room:
                    self.ring.appendleft(tenant)
                    self.stopped = tenant
                    return admitted
                head = queue.popleft()
                room -= size_of(head)
                admitted.append(head.request)
                self.deficits[tenant] -= head.prompt_tokens / head.weight
            if queue or self.deficits[tenant] < 0:
                self.ring.append(tenant)
            else:
                self.deficits[tenant] = 0.0
        return admitted


class Pair:
    """The kind and its definition, told the same."""

    def __init__(self, seed: int, quantum: float | None, num_tenants: int = 4) -> None:
        self.num_tenants = num_tenants
        self.draw = random.Random(seed)  # noqa: S311  a seeded history, not a secret
        self.naive = Naive(1.0 if quantum is None else quantum)
        self.order = DeficitRoundRobin(quantum)
        self.queue = FairQueue(self.order)
        self.ledger = Ledger(Window())
        self.window = Window()
        self.num = 0
        self.weights = {f"t{n}": self.draw.choice([0.5, 1.0, 2.0]) for n in range(num_tenants)}

    def arrive(self) -> None:
        self.num += 1
        tenant = f"t{min(self.draw.randrange(self.num_tenants), self.draw.randrange(self.num_tenants))}"
        queued = Queued(
            self.num,
            self.num,
            tenant=tenant,
            prompt_tokens=self.draw.randint(1, 40),
            max_output_tokens=self.draw.randint(1, 40),
            weight=self.weights[tenant],
        )
        self.queue.push(queued)
        self.naive.arrive(queued)

    def produce(self) -> None:
        made = [request for request in self.ledger.in_flight if self.draw.random() < 0.7]
        for _ in range(self.draw.choice([1, 1, 10])):
            self.ledger.tokens(made)
            for request in made:
                charge = self.ledger.in_flight[request]
                self.naive.deficits[charge.tenant] -= 2.0 / charge.weight

    def finish(self) -> None:
        if self.ledger.in_flight:
            charge = self.draw.choice(list(self.ledger.in_flight.values()))
            self.ledger.close(charge, charge.output_tokens, refund_prompt=False)
            self.queue.end(charge.leaf, 0.0)

    def withdraw(self) -> None:
        if self.queue.waiting:
            queued = self.draw.choice(list(self.queue.waiting.values()))
            self.queue.remove(queued)
            self.queue.retire(queued.leaf, 0.0)
            self.naive.withdraw(queued)

    def refund(self) -> None:
        """A prefix was found, or nobody wanted what was predicted, of one that takes turns still."""
        charges = [charge for charge in self.ledger.in_flight.values() if charge.leaf.path[-1].on_ring]
        if charges:
            charge = self.draw.choice(charges)
            amount = self.draw.choice([1.0, 16.0, 300.0])
            self.queue.refund(charge.leaf, charge.weight, amount)
            self.naive.deficits[charge.tenant] += amount / charge.weight

    def hear(self) -> None:
        """Another replica has charged, or given back."""
        known = [node for node in self.queue.accounts.values() if node.on_ring]
        if known:
            node, amount = self.draw.choice(known), self.draw.choice([-8.0, 1.0, 64.0])
            self.queue.give(node, amount)
            self.naive.deficits[node.name] -= amount

    def resize(self) -> None:
        """The window is another: so is a quantum that follows it."""
        self.naive.quantum = self.draw.choice([1.0, 2.0, 16.0, 128.0])
        self.order.size(round(20 * self.naive.quantum))

    def check(self) -> None:
        check_queue(self.queue)
        known = self.queue.accounts
        found = {name: self.order.deficit(node) for name, node in known.items() if node.on_ring}
        assert found == {name: self.naive.deficits[name] for name in self.naive.ring}

    def refill(self) -> None:
        room = left = self.draw.choice([0, 30, 100])
        admitted: list[int] = []
        self.order.begin()
        while (queued := self.order.next(self.queue)) is not None:
            assert self.order.next(self.queue) is queued
            if size_of(queued) > left:
                self.order.refused()
                break
            left -= size_of(queued)
            self.queue.leave(queued, 0.0)
            self.ledger.open(Charge.of(queued, PRICES, 0, self.window.take(size_of(queued)), "all"))
            admitted.append(queued.request)
        assert admitted == self.naive.refill(room)
        if self.draw.random() < 0.3:
            self.order.next(self.queue)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(min_value=0, max_value=2**32), quantum=st.sampled_from([0.5, 3.0, 16.0, 500.0]))
def test_the_order_is_that_of_the_loop_round_after_round(seed: int, quantum: float) -> None:
    pair = Pair(seed, quantum)
    actions = [pair.arrive, pair.arrive, pair.produce, pair.finish, pair.refill]
    for _ in range(150):
        pair.draw.choice(actions)()
        pair.check()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(min_value=0, max_value=2**32), quantum=st.sampled_from([None, 0.5, 3.0, 500.0]))
def test_whoever_owes_less_or_waits_no_more_is_not_passed_for_what_it_owed(seed: int, quantum: float | None) -> None:
    pair = Pair(seed, quantum, num_tenants=12)
    actions = [pair.arrive, pair.arrive, pair.arrive, pair.produce, pair.finish, pair.refill, pair.refill]
    actions += [pair.withdraw, pair.refund, pair.hear]
    if quantum is None:
        actions.append(pair.resize)
    for _ in range(120):
        pair.draw.choice(actions)()
        pair.check()


def test_rounds_in_which_all_stay_in_debt_take_no_time() -> None:
    order = DeficitRoundRobin(1e-3)
    queue = FairQueue(order)
    for number in (1, 2):
        queue.push(Queued(number, number, tenant=f"t{number}", prompt_tokens=1, max_output_tokens=1))
    queue.accounts["t1"].counter, queue.accounts["t2"].counter = 1e9 + 2, 1e9 + 1
    first = queue.next()
    assert first is not None
    assert first.tenant == "t2"


def test_the_quantum_is_a_twentieth_of_the_window_unless_the_policy_says() -> None:
    def turns(order: DeficitRoundRobin) -> list[str]:
        queue = FairQueue(order)
        order.size(2000)
        for number in range(8):
            queue.push(Queued(number, number, tenant="ab"[number // 4], prompt_tokens=50, max_output_tokens=1))
        released = []
        while (queued := queue.next()) is not None:
            queue.leave(queued, 0.0)
            queued.leaf.path[-1].counter += 50
            released.append(queued.tenant)
        return released

    assert "".join(turns(DeficitRoundRobin(None))) == "aabbaabb"
    assert "".join(turns(DeficitRoundRobin(50.0))) == "abababab"


class Counted(DeficitRoundRobin):
    """Counts how often somebody is looked at."""

    def __init__(self, quantum: float) -> None:
        super().__init__(quantum)
        self.num_looks = 0

    def _rounds_in_debt(self, tenant: Node) -> int:
        self.num_looks += 1
        return super()._rounds_in_debt(tenant)


def test_a_turn_costs_the_same_however_many_are_in_debt_and_small_the_quantum() -> None:
    num_tenants, num_released = 2000, 200
    draw, order = random.Random(3), Counted(0.125)  # noqa: S311  a seeded history, not a secret
    queue = FairQueue(order)
    for number in range(2 * num_tenants):
        queue.push(Queued(number, number, tenant=f"t{number // 2}", prompt_tokens=1, max_output_tokens=1))
    for tenant in queue.accounts.values():
        tenant.counter += draw.randrange(10**6)
    order.num_looks = 0
    for _ in range(num_released):
        queued = queue.next()
        assert queued is not None
        queue.leave(queued, 0.0)
        queued.leaf.path[-1].counter += draw.randrange(10**6)
    # All were charged behind its back, and are looked at once for that.
    assert order.num_looks <= num_tenants + 4 * num_released


def test_a_debt_ends_although_a_float_cannot_tell_the_quantum_beside_it() -> None:
    for quantum in (1e-9, 1e-310):
        queue = FairQueue(DeficitRoundRobin(quantum))
        for number in (1, 2):
            queue.push(Queued(number, number, tenant=f"t{number}", prompt_tokens=1, max_output_tokens=1))
        for tenant in queue.accounts.values():
            tenant.counter = 2.0**39
        assert queue.next() is not None


def test_many_that_join_at_one_place_of_the_ring_stay_in_order() -> None:
    ring = Ring()
    first, *others = (Node(f"n{number}", None) for number in range(300))
    ring.join(first)
    for other in others:  # behind the first, and before all that joined since it was passed last
        ring.turn_to(first)
        ring.passed(first)
        ring.look_after(first, 0)
        for each in list(ring):
            if each is not first:
                ring.look_after(each, 10**6)
        ring.join(other)
        ring.check()
