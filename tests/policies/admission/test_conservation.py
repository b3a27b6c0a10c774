"""F13 and F14: nothing idles beside work that fits, and what is charged is what was processed, token by token."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.admission.core import AdmissionCore
from policies.admission.meter import Meter
from policies.events import Arrived, RequestFinished
from policies.simulation.driver import ADMISSION, Simulation
from policies.simulation.executor_model import Device, FloorLinear
from policies.simulation.workload import synthetic
from tests.policies.admission.worlds import Ask, Conditions, World, document, random_trace

histories = st.integers(min_value=0, max_value=2**32)
ROUGH = Conditions(executors=2, late_steps=3, lost=0.1, preempted=0.1)


def settled_tokens(world: World) -> dict[int, tuple[int, int]]:
    """(prompt, output) by request, as the core settled them."""
    return {command.request: (command.prompt_tokens, command.output_tokens) for command in world.settled}


def processed_tokens(world: World) -> dict[int, tuple[int, int]]:
    """(prompt, output) of everything that was released, as it happened; recomputed tokens are in it once."""
    return {
        request: (0 if life.refunded else life.ask.prompt, life.made)
        for request, life in world.lives.items()
        if life.released_s is not None
    }


@settings(max_examples=40, deadline=None)
@given(seed=histories, kind=st.sampled_from(["vtc", "fcfs"]))
def test_f14_what_is_settled_is_what_was_processed_and_nothing_stays_reserved(seed: int, kind: str) -> None:
    world = World(document(kind=kind, window_tokens=60), random_trace(seed, weights=True), ROUGH, seed=seed).run()
    assert settled_tokens(world) == processed_tokens(world)
    assert sorted(world.ends) == sorted(world.lives)
    assert world.core.window.reserved_tokens == world.core.window.num_requests == 0
    assert not world.core.ledger.in_flight


@settings(max_examples=40, deadline=None)
@given(seed=histories, window=st.integers(min_value=1, max_value=80))
def test_f13_nobody_waits_while_nothing_is_in_flight(seed: int, window: int) -> None:
    world = World(document(kind="vtc", window_tokens=window), random_trace(seed), ROUGH, seed=seed)
    world.watchers.append(lambda _event, _commands: nothing_idles(world))
    world.run()
    assert world.ends


def nothing_idles(world: World) -> None:
    """`World` also runs `core.check()` after every event, which asserts that the next in order does not fit."""
    assert world.in_flight or not any(world.waiting.values())


def test_a_request_that_is_reported_twice_or_by_nobody_known_changes_nothing() -> None:
    world = World(document(kind="vtc", window_tokens=60), [Ask(0.0, "a", 5, 5, 5), Ask(0.0, "b", 5, 5, 5)]).run()
    before = [account.counter for account in world.core.queue.accounts.values()]
    for request in (8, 16, 800):
        world.tell(RequestFinished(request, 3))
    assert [account.counter for account in world.core.queue.accounts.values()] == before
    assert len(world.ends) == 2


@pytest.mark.parametrize("event", ["cancel", "disconnect", "error"])
def test_storms_of_ends_leave_no_reservation_and_no_drift(event: str) -> None:
    fates = {
        "cancel": {"cancel_after_s": 0.0},
        "disconnect": {"cancel_after_s": 2.5},
        "error": {"fails_after": 0},
    }
    trace = [Ask(0.1 * number, f"t{number % 5}", 10, 10, 10)._replace(**fates[event]) for number in range(300)]
    world = World(document(kind="vtc", window_tokens=60), trace).run()
    assert settled_tokens(world) == processed_tokens(world)
    assert world.core.window.reserved_tokens == 0
    assert all(account.counter >= 0.0 for account in world.core.queue.accounts.values())
    # Everybody starts anew from the same place: nobody was left with a credit or a debt that others do not have.
    fresh = [Ask(1000.0, f"t{number}", 10, 10, 10) for number in range(5)]
    gap = resume(world.core, fresh, world.now)
    assert gap <= world.core.bound


def resume(core: AdmissionCore, asks: list[Ask], now: float) -> float:
    """The gap when all these wait at once."""
    for number, ask in enumerate([*asks, *asks, *asks]):
        core.handle(Arrived(1_000_000 + 8 * number, ask.tenant, "free", ask.prompt, ask.declared), now)
    core.check()
    return core.gap


# --- the counters themselves --------------------------------------------------------------------------------------


def weighted_cached(prompt: int, cached: int, output: int) -> float:
    return prompt - 0.75 * cached + 2.0 * output


def quadratic(prompt: int, cached: int, output: int) -> float:
    def whole(p: int, q: int) -> float:
        return 0.21 * p + 0.1 * q + 0.04 * p * q + 0.03 * q * q + 1.1

    return whole(prompt, output) - (whole(prompt, 0) - whole(prompt - cached, 0))


COSTS = {
    "weighted_tokens": ({"kind": "weighted_tokens", "cached_prompt": 0.25}, weighted_cached),
    "quadratic": ({"kind": "quadratic", "a": 0.21, "b": 0.1, "c": 0.04, "d": 0.03, "e": 1.1}, quadratic),
}


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("predictor", ["none", "declared", {"mean_last": 5}], ids=str)
@pytest.mark.parametrize("kind", ["vtc", "lcf", "fcfs"])
def test_f14_charges_less_refunds_are_the_cost_of_what_was_processed(kind: str, predictor: object, cost: str) -> None:
    section, whole = COSTS[cost]
    policy = document(kind=kind, window_tokens=60, cost=section, predictor=predictor)
    for seed in range(3):
        world = World(policy, random_trace(seed, weights=True, num_asks=60), ROUGH, seed=seed)
        queue = world.core.queue
        queue._drop = lambda _node: None  # type: ignore[method-assign]  # a forgotten counter cannot be compared
        world.run()
        owed = dict.fromkeys(world.names, 0.0)
        for life in world.lives.values():
            ask = life.ask
            if life.released_s is not None and not life.refunded:
                owed[ask.tenant] += whole(ask.prompt, ask.cached if life.hit else 0, life.made) / ask.weight
        # Lifts are no service: the queue keeps their sum beside the counter.
        charged = {name: node.counter - node.credit for name, node in queue.accounts.items()}
        assert charged == pytest.approx({name: owed[name] for name in charged})


def test_f14_tokens_that_preempted_requests_compute_again_are_charged_once() -> None:
    vllm = (Path(__file__).resolve().parents[3] / "policies" / "vllm.yaml").read_text()
    crowded = re.sub(r"(?m)^fairness:.*$", "fairness: {window_tokens: 5000}", vllm).encode()
    requests = synthetic("chat", qps=4.0, duration_s=8.0, seed=1, max_sequence_tokens=400)
    device = Device("forty blocks", 40, 16, 1024, FloorLinear(0.01, 0.0, 0.0, 0.0))
    simulation = Simulation(crowded, requests, device, check=True)
    meter = Meter(simulation.admission)
    simulation.observers.append(
        lambda core, now, event, commands: meter.look(now, event, commands) if core == ADMISSION else None
    )
    outcome = simulation.run()
    assert outcome.preemptions > 0
    assert outcome.recomputed_tokens > 0
    rows = meter.report(simulation.now).tenants
    assert sum(row.output_tokens for row in rows) == sum(asked.output_tokens for asked in requests)
    assert sum(row.prompt_tokens for row in rows) == sum(asked.prompt_tokens for asked in requests)
    assert outcome.max_gap_ratio <= 1.0
