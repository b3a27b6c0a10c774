"""Callers that do their worst against their limits."""

from policies.commands import Refuse, Release
from policies.events import CancelRequested
from tests.policies.admission.test_intake import REQUESTS, Gate

TOKENS = {"scope": "tenant", "dimension": "total_tokens", "rate_per_min": 6000, "burst": 600}


def test_retrying_in_a_loop_gets_no_more_than_the_contract_and_costs_the_others_nothing() -> None:
    gate = Gate({**REQUESTS, "burst": 5}, TOKENS, window=10_000)
    accepted: list[float] = []
    waits = []
    for tick in range(6000):
        gate.now = tick / 50
        request = 10 * tick + 10
        (answer,) = gate.arrive(request, 50, 50)
        if isinstance(answer, Release):
            accepted.append(gate.now)
            gate.finish(request, 50)
        if tick % 100 == 0:
            (release,) = gate.arrive(request + 5, 50, 50, tenant="quiet", key="k2")
            waits.append(release.waited_s)
            gate.finish(request + 5, 50)
    assert len(accepted) == 5 + 119, "the key may make one request a second, and five at once"
    assert set(waits) == {0.0}


def test_waiting_what_the_refusal_says_passes_however_odd_the_rate() -> None:
    gate = Gate({**TOKENS, "rate_per_min": 7777, "burst": 333}, {**REQUESTS, "rate_per_min": 97, "burst": 3})
    for number in range(1, 200):
        (answer,) = gate.arrive(10 * number, 10 + number % 90, 40)
        if isinstance(answer, Refuse):
            assert answer.retry_after_s is not None
            gate.now += answer.retry_after_s
            (answer,) = gate.arrive(10 * number + 5, 10 + number % 90, 40)
        assert isinstance(answer, Release), f"request {number} waited what it was told and did not pass"
        gate.finish(answer.request, number % 40)


def test_a_storm_of_cancels_leaves_nothing_taken_but_the_requests() -> None:
    gate = Gate(REQUESTS | {"burst": 1000}, {**TOKENS, "burst": 10**6}, window=100)
    gate.arrive(1, 50, 50)
    for number in range(2, 400):
        gate.arrive(10 * number, 50, 50)
    for number in range(2, 400):
        gate.tell(CancelRequested(10 * number))
    assert gate.used() == {"requests": 399, "total_tokens": 100}
