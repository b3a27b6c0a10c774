"""F1 to F5, F7, F11 and F12 over random histories; and without the lift each of them breaks."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.admission.fairness import FairQueue
from policies.admission.nodes import Node
from tests.policies.admission.theorems import Theorems, weighted
from tests.policies.admission.worlds import Ask, Conditions, World, document, random_trace

PRICES = [(1.0, 2.0), (3.0, 1.0), (1.0, 1.0)]
BOUNDS = ("F1", "F2", "F3", "F4", "F5")
WINDOW = 60
histories = st.integers(min_value=0, max_value=2**32)


def watched(
    trace: list[Ask],
    conditions: Conditions | None = None,
    *,
    prices: tuple[float, float] = PRICES[0],
    seed: int = 0,
    window: int = WINDOW,
    **fairness: Any,
) -> Theorems:
    """A world that has run its trace, and what came of the theorems."""
    prompt, output = prices
    cost = {"kind": "weighted_tokens", "prompt": prompt, "output": output}
    policy = document(kind="vtc", window_tokens=window, cost=cost, **fairness)
    world = World(policy, trace, conditions, seed=seed)

    refunds = any(ask.cached or ask.fails_after == 0 for ask in trace)

    def unit_bound(window_tokens: int, longest_prompt: int) -> float:
        # What is given back of prompts lowers a counter below the one that others were released by.
        dearer = window_tokens if refunds else longest_prompt
        return output * window_tokens + max(0.0, prompt - output) * dearer

    theorems = Theorems(world, weighted(prompt, output), unit_bound, late_price=output)
    world.run()
    return theorems


def holds(theorems: Theorems) -> None:
    """Every theorem at every instant."""
    assert {name: ratio for name, ratio in theorems.worst.items() if ratio > 1.0 + 1e-9} == {}


@settings(max_examples=60, deadline=None)
@given(seed=histories, prices=st.sampled_from(PRICES))
def test_f1_to_f5_hold_whatever_is_cancelled_fails_or_is_preempted(seed: int, prices: tuple[float, float]) -> None:
    holds(watched(random_trace(seed), Conditions(preempted=0.1, lost=0.02), prices=prices, seed=seed))


@settings(max_examples=30, deadline=None)
@given(seed=histories, window=st.integers(min_value=1, max_value=40))
def test_f1_to_f5_hold_with_requests_larger_than_the_window(seed: int, window: int) -> None:
    holds(watched(random_trace(seed), seed=seed, window=window))


@settings(max_examples=40, deadline=None)
@given(seed=histories, prices=st.sampled_from(PRICES))
def test_f7_with_weights_they_hold_for_service_over_weight(seed: int, prices: tuple[float, float]) -> None:
    holds(watched(random_trace(seed, weights=True), Conditions(preempted=0.05), prices=prices, seed=seed))


@settings(max_examples=30, deadline=None)
@given(seed=histories, executors=st.integers(min_value=2, max_value=4))
def test_f11_they_hold_for_several_executors_behind_one_queue(seed: int, executors: int) -> None:
    holds(watched(random_trace(seed), Conditions(executors=executors, preempted=0.1), seed=seed))


@settings(max_examples=30, deadline=None)
@given(seed=histories)
def test_f12_usage_that_comes_late_loosens_them_by_twice_what_is_late(seed: int) -> None:
    holds(watched(random_trace(seed), Conditions(late_steps=4, lost=0.1), seed=seed))


def test_they_come_near_their_bounds_so_the_bounds_are_not_idle() -> None:
    worst = dict.fromkeys(BOUNDS, 0.0)
    for seed in range(30):
        for name, ratio in watched(random_trace(seed, calm=True), seed=seed).worst.items():
            worst[name] = max(worst[name], ratio)
    assert worst["F1"] > 0.6
    assert worst["F2"] > 0.4


# --- without the lift ---------------------------------------------------------------------------------------------


def asks(tenant: str, count: int, *, at_s: float, every_s: float = 0.0, prompt: int = 5, output: int = 10) -> list[Ask]:
    return [Ask(at_s + every_s * index, tenant, prompt, output, output) for index in range(count)]


LONG_ALONE_THEN_CROWDED = [
    # One tenant works alone for long, while another is known but silent; then that one floods and the first asks a
    # little. A silent tenant's old counter is far below: without the lift it is served alone until it has caught up.
    *asks("silent", 1, at_s=0.0),
    *asks("busy", 120, at_s=1.0, every_s=2.0),
    *asks("silent", 200, at_s=400.0),
    *asks("busy", 12, at_s=402.0, every_s=1.0),
]


@pytest.mark.parametrize("name", BOUNDS)
def test_a_silent_tenant_that_returns_gets_no_more_than_its_share(name: str) -> None:
    assert watched(LONG_ALONE_THEN_CROWDED).worst[name] <= 1.0


@pytest.mark.parametrize("name", BOUNDS)
def test_without_the_lift_the_theorem_breaks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FairQueue, "_lift_level", lambda _queue, node: node.counter)
    assert watched(LONG_ALONE_THEN_CROWDED).worst[name] > 1.0


@pytest.mark.parametrize("conditions", [Conditions(executors=3), Conditions(late_steps=3, lost=0.1)], ids=str)
@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_f7_f11_f12_break_without_the_lift_too(
    weight: float, conditions: Conditions, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = [ask._replace(weight=weight if ask.tenant == "silent" else 1.0) for ask in LONG_ALONE_THEN_CROWDED]
    holds(watched(trace, conditions))
    monkeypatch.setattr(FairQueue, "_lift_level", lambda _queue, account: account.counter)
    assert watched(trace, conditions).worst["F1"] > 1.0


def test_without_the_lift_random_histories_break_the_bound_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FairQueue, "_lift_level", lambda _queue, node: node.counter)
    assert max(watched(random_trace(seed), seed=seed).worst["F1"] for seed in range(12)) > 2.0


def test_without_the_lift_of_an_empty_backlog_a_returning_tenant_is_served_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def level(queue: FairQueue, node: Node) -> float:
        least = queue.least(node.above)
        return node.counter if least is None else least.counter

    monkeypatch.setattr(FairQueue, "_lift_level", level)
    assert watched(LONG_ALONE_THEN_CROWDED).worst["F1"] > 1.0


# --- decisions are a function of events --------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(seed=histories)
def test_the_same_history_is_decided_byte_for_byte_alike(seed: int) -> None:
    def decisions() -> list[bytes]:
        conditions = Conditions(preempted=0.1, late_steps=2, lost=0.05)
        policy = document(kind="vtc", window_tokens=WINDOW)
        return World(policy, random_trace(seed, weights=True), conditions, seed=seed).run().log

    assert decisions() == decisions()
