"""The kinds beside one another, and from one to another."""

from typing import Any

import pytest

from policies.admission.core import AdmissionCore
from policies.commands import Release
from policies.events import Arrived, CapacityChanged, PolicyApplied, RequestFinished, Started, TokensProduced
from tests.policies.admission.worlds import document

KINDS = ("vtc", "lcf", "drr", "fcfs")


class Desk:
    """An admission core before a window for one request at a time; checked after every event."""

    def __init__(self, kind: str) -> None:
        self.core = AdmissionCore()
        self.released: list[int] = []
        self._revision = 0
        self._tell(Started(0.0))
        self.apply(kind)
        self._tell(CapacityChanged(1, 1000, 1000))

    def apply(self, kind: str, **fairness: Any) -> None:
        self._revision += 1
        self._tell(PolicyApplied(self._revision, document(kind=kind, window_tokens=20, **fairness)))

    def arrive(self, request: int, tenant: str) -> None:
        self._tell(Arrived(request, tenant, "free", 10, 10))

    def serve(self, num: int) -> str:
        """The tenants of the next so many requests, each with ten tokens."""
        tenants = ""
        for _ in range(num):
            (charge,) = self.core.ledger.in_flight.values()
            tenants += charge.tenant
            for _ in range(10):
                self._tell(TokensProduced([charge.request]))
            self._tell(RequestFinished(charge.request, 10))
        return tenants

    def _tell(self, event: Any) -> None:
        commands = self.core.handle(event, 0.0)
        self.core.check()
        self.released += [command.request for command in commands if isinstance(command, Release)]


def after_an_absence(kind: str) -> str:
    """a works alone for long, then b comes with as much."""
    desk = Desk(kind)
    for number in range(1, 21):
        desk.arrive(number, "a")
    served = desk.serve(10)
    for number in range(21, 31):
        desk.arrive(number, "b")
    served += desk.serve(20)
    return served[10:]


def test_vtc_begins_equal_lcf_repays_the_absence_and_fcfs_keeps_the_order() -> None:
    # The request in flight when b comes is a's.
    assert after_an_absence("vtc") == "ab" * 10
    assert after_an_absence("lcf") == "a" + "b" * 10 + "a" * 9
    assert after_an_absence("fcfs") == "a" * 10 + "b" * 10
    assert sorted(after_an_absence("drr")[:10]) == list("aaaaabbbbb")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_counters_survive_a_change_of_kind_and_back(kind: str, other: str) -> None:
    desk = Desk(kind)
    for number in range(1, 31):
        desk.arrive(number, "abc"[number % 3])
    desk.serve(6)
    before = {name: node.counter for name, node in desk.core.queue.accounts.items()}
    desk.apply(other)
    assert {name: node.counter for name, node in desk.core.queue.accounts.items()} == before
    desk.serve(6)
    desk.apply(kind)
    desk.serve(18)
    assert sorted(desk.released) == list(range(1, 31))
    assert not desk.core.ledger.in_flight


def test_turns_go_on_when_another_knob_changes() -> None:
    desk = Desk("drr")
    for number in range(1, 13):
        desk.arrive(number, "ab"[number % 2])
    desk.apply("drr", quantum_tokens=60)
    order = desk.core.queue.order
    desk.serve(3)
    desk.apply("drr", quantum_tokens=60, max_requests=5)
    assert desk.core.queue.order is order
    desk.apply("drr", quantum_tokens=61)
    assert desk.core.queue.order is not order


def test_the_reason_of_a_release_names_the_kind() -> None:
    reasons = []
    for kind in KINDS:
        core = AdmissionCore()
        for event in (
            Started(0.0),
            PolicyApplied(1, document(kind=kind, window_tokens=20)),
            CapacityChanged(1, 100, 90),
        ):
            core.handle(event, 0.0)
        reasons += [one.reason for one in core.handle(Arrived(1, "a", "free", 5, 5), 0.0) if isinstance(one, Release)]
    assert reasons == ["least counter", "least counter", "its turn", "oldest"]


def test_prices_may_change_while_requests_run_and_theirs_stay() -> None:
    desk = Desk("vtc")
    desk.arrive(1, "a")
    desk.apply("vtc", cost={"kind": "quadratic", "a": 5, "b": 7})
    desk.serve(1)
    assert desk.core.queue.accounts["a"].counter == 10 + 20
    desk.arrive(2, "a")
    desk.serve(1)
    assert desk.core.queue.accounts["a"].counter == 30 + 50 + 70
