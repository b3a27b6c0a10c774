"""F8 to F10 and what realised sizes bound: general costs, predictors, projects of a tenant, other ways to reserve."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.admission.fairness import FairQueue
from tests.policies.admission.test_fairness_bounds import BOUNDS, LONG_ALONE_THEN_CROWDED, asks, histories, holds
from tests.policies.admission.theorems import Cost, Theorems, dearest, weighted
from tests.policies.admission.worlds import Ask, Conditions, World, document, random_trace

WINDOW = 60
QUADRATIC = {"kind": "quadratic", "a": 0.21, "b": 0.1, "c": 0.04, "d": 0.03, "e": 1.1}
COSTS: dict[str, tuple[dict[str, Any], Cost]] = {
    "tokens": ({"kind": "tokens"}, weighted(1.0, 1.0)),
    "quadratic": (QUADRATIC, lambda p, q: 0.21 * p + 0.1 * q + 0.04 * p * q + 0.03 * q * q + 1.1),
    # The prompt held for one step, and prompt and output so far for each token.
    "kv_token_time": ({"kind": "kv_token_time"}, lambda p, q: p + sum(p + made for made in range(1, q + 1))),
}
PREDICTORS: list[Any] = ["none", "declared", {"mean_last": 5}, {"ema": 0.2}, "oracle", {"noisy_oracle": 0.5}]


def watched(trace: list[Ask], cost: str = "", *, parent: str | None = None, seed: int = 0, **fairness: Any) -> Theorems:
    """A world under `vtc` that has run its trace, and what came of the theorems."""
    if cost:
        fairness["cost"], h = COSTS[cost]
        bound = dearest(h)
    else:
        h, bound = weighted(1.0, 2.0), lambda window_tokens, _longest: 2.0 * window_tokens
    policy = document(**{"kind": "vtc", "window_tokens": WINDOW, **fairness})
    world = World(policy, trace, Conditions(preempted=0.05), seed=seed)
    theorems = Theorems(world, h, bound, parent=parent)
    if fairness.get("predictor", "none") != "none":
        theorems.size_tokens = lambda ask: ask.prompt + ask.choices * ask.declared
    world.run()
    assert sorted(world.ends) == sorted(world.lives)
    return theorems


def without_lift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FairQueue, "_lift_level", lambda _queue, node: node.counter)


# --- F8: general costs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", COSTS)
@settings(max_examples=12, deadline=None)
@given(seed=histories)
def test_f8_a_general_cost_is_bounded_by_what_a_window_of_the_dearest_requests_costs(cost: str, seed: int) -> None:
    holds(watched(random_trace(seed, num_asks=50), cost, seed=seed))


@pytest.mark.parametrize("cost", ["tokens", "quadratic"])
def test_f8_breaks_without_the_lift(cost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(watched(LONG_ALONE_THEN_CROWDED, cost).worst.values()) <= 1.0
    without_lift(monkeypatch)
    assert watched(LONG_ALONE_THEN_CROWDED, cost).worst["F1"] > 1.0


# --- F9: predictors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("predictor", PREDICTORS, ids=str)
@settings(max_examples=10, deadline=None)
@given(seed=histories)
def test_f9_a_prediction_may_be_wrong_by_no_more_than_another_bound(predictor: Any, seed: int) -> None:
    worst = watched(random_trace(seed, num_asks=50), seed=seed, predictor=predictor).worst
    assert {name: ratio for name, ratio in worst.items() if ratio > 2.0} == {}


def test_f9_breaks_without_the_lift(monkeypatch: pytest.MonkeyPatch) -> None:
    without_lift(monkeypatch)
    assert watched(LONG_ALONE_THEN_CROWDED, predictor={"mean_last": 5}).worst["F1"] > 2.0


# --- F10: below a tenant ------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(seed=histories, parent=st.sampled_from([None, "tenant0", "tenant1"]))
def test_f10_the_bounds_hold_among_tenants_and_among_the_projects_of_each(seed: int, parent: str | None) -> None:
    trace = random_trace(seed, weights=True, keys=3)
    holds(watched(trace, parent=parent, seed=seed, levels=["tenant", "project", "key"]))


BELOW = [ask._replace(tenant="acme", project=ask.tenant) for ask in LONG_ALONE_THEN_CROWDED]


@pytest.mark.parametrize("name", [name for name in BOUNDS if name != "F4"])
def test_f10_breaks_without_the_lift(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = ["tenant", "project"]
    assert watched(BELOW, parent="acme", levels=levels).worst[name] <= 1.0
    without_lift(monkeypatch)
    assert watched(BELOW, parent="acme", levels=levels).worst[name] > 1.0


def test_without_projects_among_the_levels_they_share_one_queue_and_no_bound() -> None:
    crowd = [ask._replace(tenant="acme", project="crowd") for ask in asks("crowd", 150, at_s=0.0)]
    modest = [ask._replace(tenant="acme", project="modest") for ask in asks("modest", 10, at_s=1.0)]
    assert watched([*crowd, *modest], parent="acme", levels=["tenant", "project"]).worst["F2"] <= 1.0
    assert watched([*crowd, *modest], parent="acme", levels=["tenant"]).worst["F2"] > 1.0


# --- other reservations: M as realised ----------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(seed=histories)
def test_occupancy_stays_within_the_bound_of_what_was_really_in_flight(seed: int) -> None:
    # Calm: a request that is cancelled never takes what it would have.
    holds(watched(random_trace(seed, calm=True, num_asks=50), seed=seed, reserve="occupancy"))


@settings(max_examples=12, deadline=None)
@given(seed=histories)
def test_reserving_what_is_predicted_loosens_the_bounds_by_no_more_than_the_prediction_does(seed: int) -> None:
    trace = random_trace(seed, calm=True, num_asks=50)
    worst = watched(trace, seed=seed, reserve="predicted", predictor={"mean_last": 5}).worst
    assert {name: ratio for name, ratio in worst.items() if ratio > 2.0} == {}


def test_staggered_outputs_outgrow_the_published_bound_but_never_ours() -> None:
    above = 0.0
    for seed in range(4):
        trace = [
            Ask(0.0, "ab"[index % 2], 1, 1 + (index * 7 + seed) % 30, 1 + (index * 7 + seed) % 30)
            for index in range(80)
        ]
        theorems = watched(trace, reserve="occupancy", seed=seed)
        holds(theorems)
        above = max(above, theorems.most_in_flight_tokens / WINDOW)
    assert above > 1.0, "early ends never made room for more than the window: this tests nothing"
