"""Replicas that share counters through a real Redis server are fair together, as far as they know of each other."""

import itertools
import random
from typing import Any

import msgspec
import pytest

from policies.admission.core import AdmissionCore
from policies.admission.shared import SEPARATOR
from policies.commands import Release
from policies.events import Arrived, CapacityChanged, PolicyApplied, RequestFinished, Started, TokensProduced
from services.admission.redis_limits import SCRIPT
from services.admission.redis_operations import Place, Session, encode, read_answer
from services.admission.shared_counters import NODE_ROW, SharedCounters
from tests.policies.admission.test_admission_core import document

pytestmark = pytest.mark.redis

places = itertools.count()
POLICY = document(
    fairness={"window_tokens": 400, "cost": {"kind": "weighted_tokens", "prompt": 1, "output": 2}},
    queue={"per_tenant_max": 10_000, "total_max": 10_000, "ttl_s": 3600},
)
BOUND = 2.0 * 400
"""U of one replica: w_q M."""


class Replica:
    """A core with executors that make one token of everything in flight in a step, and its part of the store."""

    def __init__(self, client: Any, place: Place) -> None:
        self.core = AdmissionCore()
        self.shares = SharedCounters(self.core.queue)
        self.running: dict[int, list[int]] = {}
        """By request: tokens made, tokens that there will be."""
        self._script = client.register_script(SCRIPT)
        self._session = Session(place, "session", 3600.0)
        self._numbers = itertools.count(1)
        self._outputs: dict[int, int] = {}
        for event in (Started(0.0), PolicyApplied(1, POLICY), CapacityChanged(1, 10_000, 2000)):
            self.tell(event)
        self.shares.changed([])

    def tell(self, event: Any) -> None:
        for command in self.core.handle(event, 0.0):
            if isinstance(command, Release):
                self.running[command.request] = [0, self._outputs[command.request]]
        self.core.check()

    def arrive(self, request: int, tenant: str, prompt: int, output: int, weight: float = 1.0) -> None:
        self._outputs[request] = output
        self.tell(Arrived(request, tenant, "free", prompt, output, weight=weight))

    def step(self) -> None:
        if self.running:
            self.tell(TokensProduced(list(self.running)))
        for request, progress in list(self.running.items()):
            progress[0] += 1
            if progress[0] == progress[1]:
                del self.running[request]
                self.tell(RequestFinished(request, progress[0], "stop"))

    def exchange(self, now_s: float) -> None:
        """As the store does."""
        self.shares.changed(NODE_ROW + name for name in self.nodes())
        operation = self.shares.ask(fresh_ms=60_000)
        number = next(self._numbers)
        keys, [head, *values] = encode(self._session, number, [operation], number - 1 or None)
        asked = msgspec.msgpack.decode(head) | {"now": [1_795_000_000 + int(now_s), 0]}
        answer = read_answer(self._script(keys=keys, args=[msgspec.msgpack.encode(asked), *values]))
        event = self.shares.told(answer.answers[0], answer.num_replicas)
        if event is not None:
            self.tell(event)

    def nodes(self) -> list[str]:
        nodes, names = [self.core.queue.root], []
        for node in nodes:
            for child in getattr(node, "children", {}).values():
                nodes.append(child)
                names.append(SEPARATOR.join(each.name for each in reversed(child.path)))
        return names

    def counter(self, tenant: str) -> float:
        return self.core.queue.accounts[tenant].counter

    def charged(self, tenant: str) -> float:
        node = self.core.queue.accounts.get(tenant)
        return 0.0 if node is None else node.counter - node.given

    def num_waiting(self, tenant: str) -> int:
        node = self.core.queue.accounts.get(tenant)
        return 0 if node is None else node.num_waiting


@pytest.fixture
def replicas(redis_server: Any) -> Any:
    with redis_server.client() as client:
        deployment = f"shared-{next(places)}"
        yield [Replica(client, Place(deployment, str(number))) for number in (1, 2)]


def together(replicas: list[Replica], now_s: float) -> None:
    """Exchanged until everybody knows everything."""
    for _ in range(3):
        for replica in replicas:
            replica.exchange(now_s)


def test_what_one_replica_charges_the_other_knows_after_an_exchange(replicas: list[Replica]) -> None:
    one, two = replicas
    for request, replica in enumerate(replicas):
        replica.arrive(request, "a", 100, 50)
        replica.arrive(10 + request, "b", 100, 50)
    for _ in range(5):
        one.step()
    together(replicas, 0)
    # The prompts of both replicas, and five tokens of the one; `b` joined after the prompt of `a` and was lifted.
    assert one.counter("a") == two.counter("a") == 210.0
    assert one.counter("b") == two.counter("b") == 310.0
    for _ in range(5):
        two.step()
    assert two.counter("a") == 220.0
    together(replicas, 0)
    assert one.counter("a") == two.counter("a") == 220.0


def test_replicas_that_lift_a_tenant_at_the_same_time_lift_it_once(replicas: list[Replica]) -> None:
    one, two = replicas
    for number, replica in enumerate(replicas):
        for request in range(8):
            replica.arrive(100 * number + request, "busy", 100, 50)
    together(replicas, 0)
    level = one.counter("busy")
    for number, replica in enumerate(replicas):
        replica.arrive(1000 + number, "late", 100, 50)
    assert one.counter("late") == two.counter("late") == level == 400.0
    together(replicas, 0)
    assert one.counter("late") == two.counter("late") == level


def test_a_tenant_that_only_the_other_replica_has_served_has_no_credit_here(replicas: list[Replica]) -> None:
    one, two = replicas
    for request in range(40):
        one.arrive(request, "greedy", 10, 20)
        two.arrive(100 + request, "modest", 10, 20)
    for _ in range(60):
        one.step()
        together(replicas, 0)
    for request in range(40):
        two.arrive(1000 + request, "greedy", 10, 20)
    assert two.counter("greedy") == one.counter("greedy") > two.counter("modest")


def difference(replicas: list[Replica], num_steps: int, every: int) -> float:
    """`a` asks at both replicas and `b` only at one, both always backlogged: by how much what they got differs at most.
    `every`: steps between exchanges.
    """
    sizes, numbers = random.Random(5), itertools.count(1)  # noqa: S311  the same sizes each time
    worst = 0.0
    for step in range(num_steps):
        for replica, tenants in zip(replicas, ("ab", "a"), strict=True):
            for tenant in tenants:
                while replica.num_waiting(tenant) < 30:
                    replica.arrive(next(numbers), tenant, sizes.randint(1, 40), sizes.randint(5, 40))
        for replica in replicas:
            replica.step()
            if step % every == 0:
                replica.exchange(step)
        a, b = (sum(replica.charged(tenant) for replica in replicas) for tenant in "ab")
        worst = max(worst, abs(a - b))
    return worst


@pytest.mark.parametrize("every", [1, 7])
def test_two_replicas_are_fair_together_within_the_bound_and_the_staleness(replicas: list[Replica], every: int) -> None:
    largest = difference(replicas, 400, every)
    staleness = max(replica.core.queue.staleness for replica in replicas)
    assert 0 < largest <= 2 * len(replicas) * BOUND + staleness
    assert staleness == 2 * max(replica.shares.largest_charge for replica in replicas)
    # What the meter says of each is of all together.
    assert all(BOUND < replica.core.bound <= len(replicas) * BOUND + staleness for replica in replicas)
    assert all(replica.core.gap_ratio <= 1 for replica in replicas)


def test_replicas_that_do_not_exchange_are_not_fair_together(replicas: list[Replica]) -> None:
    assert difference(replicas, 400, every=1000) > 2 * len(replicas) * BOUND + 1000
