"""What admission counts, against the worlds that count for themselves."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.admission.limits.items import LimitItem, LimitState
from policies.commands import Refuse, Settle
from policies.events import OverLimit, Reserved
from services.admission.metrics import AdmissionMetrics
from services.telemetry import names
from services.telemetry.metrics import Family
from services.telemetry.names import Metric
from tests.policies.admission.test_fairness_bounds import asks
from tests.policies.admission.worlds import Ask, World, document, random_trace

COST = {"kind": "weighted_tokens", "prompt": 1, "output": 2}


def followed(trace: list[Ask], **fairness: object) -> tuple[World, AdmissionMetrics]:
    world = World(document(**{"kind": "vtc", "window_tokens": 60, "cost": COST, **fairness}), trace)
    metrics = AdmissionMetrics(world.core)
    world.watchers.append(lambda event, commands: metrics.look(world.now, event, commands))
    return world, metrics


def values(families: list[Family], metric: Metric) -> dict[tuple[str, ...], float]:
    return {point.labels: point.value for family in families if family.name == metric.name for point in family.points}


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(min_value=0, max_value=2**32))
def test_every_tenant_has_had_what_its_tokens_cost(seed: int) -> None:
    world, metrics = followed(random_trace(seed))
    world.run()
    expected: dict[tuple[str, ...], float] = {}
    for settled in world.settled:
        cost = settled.prompt_tokens - settled.cached_tokens + 2 * settled.output_tokens
        expected[settled.tenant,] = expected.get((settled.tenant,), 0.0) + cost
    assert values(metrics.families(1), names.TENANT_SERVICE) == pytest.approx({k: v for k, v in expected.items() if v})


def test_service_counts_while_it_is_given_and_never_falls() -> None:
    world, metrics = followed([*asks("a", 20, at_s=0.0), *asks("b", 20, at_s=0.0)])
    before: dict[tuple[str, ...], float] = {}
    for until_s in (2.5, 10.5, 30.5):
        world.run(until_s)
        service = values(metrics.families(1), names.TENANT_SERVICE)
        assert sum(service.values()) > sum(before.values())
        assert all(service[tenant] >= before[tenant] for tenant in before)
        before = service


def test_a_request_that_got_everything_back_is_no_service_whatever_a_request_costs_at_least() -> None:
    quadratic = {"kind": "quadratic", "a": 1.0, "b": 2.0, "c": 0.0, "d": 0.0, "e": 7.0}
    world, metrics = followed([], cost=quadratic)
    world.run()
    metrics.look(0.0, None, [Settle(8, "acme", 0, 0, "error"), Settle(16, "other", 1, 1, "finished")])
    service = values(metrics.families(1), names.TENANT_SERVICE)
    assert service.get(("acme",), 0.0) == 0.0
    assert service["other",] == 10.0


def test_who_waits_shows_by_class_and_the_window_with_its_limit() -> None:
    world, metrics = followed([*asks("a", 60, at_s=0.0), *asks("b", 60, at_s=0.0)])
    world.run(5.0)
    families = metrics.families(1)
    assert values(families, names.QUEUE_DEPTH) == {("all",): sum(map(len, world.waiting.values()))}
    window = values(families, names.WINDOW)
    assert window["limit",] == 60
    assert 0 < window["reserved",] <= 60
    assert 0 < values(families, names.GAP_RATIO)[()] <= 1
    assert 0.5 < values(families, names.JAIN)[()] <= 1
    assert values(families, names.REVISION) == {(): 1}


def test_an_empty_class_waits_as_zero_and_an_open_window_has_no_limit() -> None:
    world, metrics = followed([], kind="fcfs", window_tokens="auto")
    world.run()
    families = metrics.families(1)
    assert values(families, names.QUEUE_DEPTH) == {("all",): 0}
    assert values(families, names.WINDOW) == {("reserved",): 0}


def test_limits_refusals_and_what_was_lost_are_counted_by_what_decided() -> None:
    world, metrics = followed([])
    world.run()
    item = LimitItem("tenant", "acme", "requests", "gcra", amount=1, limit=5)
    state = LimitState("tenant", "acme", "total_tokens", 100, 60, 50, 1.0)
    metrics.look(0.0, Reserved(8, (state,)), [])
    metrics.look(0.0, OverLimit(16, item, 1.0), [Refuse(16, "rate_limit_exceeded", "")])
    metrics.look(0.0, OverLimit(24, item, None, never_fits=True), [Refuse(24, "request_exceeds_limit", "")])
    metrics.look(0.0, None, [Settle(32, "acme", 1, 1, "scheduler_lost"), Settle(40, "acme", 1, 1, "finished")])
    families = metrics.families(1)
    assert values(families, names.LIMIT_DECISIONS) == {
        ("total_tokens", "allowed"): 1,
        ("requests", "refused"): 1,
        ("requests", "never_fits"): 1,
    }
    assert values(families, names.REFUSALS) == {("rate_limit_exceeded",): 1, ("request_exceeds_limit",): 1}
    assert values(families, names.LOST) == {(): 1}


def test_before_its_first_policy_a_core_has_no_levels_and_saves_count_from_zero() -> None:
    _, metrics = followed([])
    metrics.reloaded("rejected")
    families = metrics.families(0)
    assert values(families, names.RELOADS) == {("applied",): 0, ("rejected",): 1}
    assert not values(families, names.QUEUE_DEPTH)
