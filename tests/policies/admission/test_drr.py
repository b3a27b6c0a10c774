"""Deficit round robin against the loop of its definition (fairness specification, 3.3)."""

import random
from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.admission.cost import Prices
from policies.admission.drr import DeficitRoundRobin
from policies.admission.fairness import FairQueue
from policies.admission.ledger import Charge, Ledger
from policies.admission.nodes import Queued
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

    def __init__(self, seed: int, quantum: float) -> None:
        self.draw = random.Random(seed)  # noqa: S311  a seeded history, not a secret
        self.naive = Naive(quantum)
        self.order = DeficitRoundRobin(quantum)
        self.queue = FairQueue(self.order)
        self.ledger = Ledger(Window())
        self.window = Window()
        self.num = 0
        self.weights = {f"t{n}": self.draw.choice([0.5, 1.0, 2.0]) for n in range(4)}

    def arrive(self) -> None:
        self.num += 1
        tenant = f"t{min(self.draw.randrange(4), self.draw.randrange(4))}"
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
    deficits = {name: node.credit - node.counter for name, node in pair.queue.accounts.items() if node.on_ring}
    assert set(deficits) == set(pair.naive.ring)


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
