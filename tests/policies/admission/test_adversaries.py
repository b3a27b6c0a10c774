"""Traces made to break fairness (fairness specification, 13): what each may gain, and that it is no more."""

import random
import sys
from typing import Any

from policies.admission.core import AdmissionCore
from policies.events import Arrived, CapacityChanged, PolicyApplied, RequestFinished, SchedulerLost, Started
from tests.policies.admission.test_fairness_bounds import asks, watched
from tests.policies.admission.worlds import Ask, Conditions, World, document

WINDOW = 200


def test_f6_the_worst_arrivals_for_any_policy_come_to_between_half_and_all_of_the_bound() -> None:
    # One floods at 0 and takes the window with the smallest prompts; the other follows at once and must watch.
    flood = asks("floods", 200, at_s=0.0, prompt=1, output=19)
    follow = asks("follows", 200, at_s=0.001, prompt=1, output=19)
    theorems = watched([*flood, *follow], window=WINDOW)
    assert theorems.largest_pair_difference >= 0.5 * 2.0 * WINDOW
    assert theorems.largest_pair_difference <= 2 * theorems.bound
    assert max(theorems.worst.values()) <= 1.0


def test_dear_prompts_keep_the_corrected_bound_where_the_published_one_breaks() -> None:
    prices = (3.0, 1.0)
    above_published = 0.0
    for seed in range(15):
        draw = random.Random(seed)  # noqa: S311  a seeded history, not a secret
        trace = [
            Ask(draw.choice([0.0, 0.0, 5.0]), draw.choice("ab"), size, 20 - size, 20 - size)
            for size in (draw.choice([1, 19]) for _ in range(60))
        ]
        theorems = watched(trace, prices=prices, window=40, seed=seed)
        assert max(theorems.worst.values()) <= 1.0 + 1e-9
        published = max(prices[0] * theorems.longest_prompt_tokens, prices[1] * theorems.most_in_flight_tokens)
        above_published = max(above_published, theorems.worst["F1"] * theorems.bound / published)
    assert above_published > 1.0


def test_an_hour_of_silence_earns_nothing() -> None:
    trace = [
        *asks("early", 3, at_s=0.0),
        *asks("steady", 360, at_s=0.0, every_s=10.0),
        *asks("early", 100, at_s=3600.0),
        *asks("steady", 100, at_s=3600.0),
    ]
    theorems = watched(trace)
    assert theorems.largest_pair_difference <= 2 * theorems.bound
    assert max(theorems.worst.values()) <= 1.0


def test_a_tenant_with_a_hundred_keys_gets_no_more_than_one_with_a_single_key() -> None:
    split = [ask._replace(key=f"key{index % 100}") for index, ask in enumerate(asks("split", 200, at_s=0.0))]
    single = asks("single", 200, at_s=0.0)
    theorems = watched([*split, *single])
    assert theorems.largest_pair_difference <= 2 * theorems.bound


def test_huge_declarations_fill_the_window_and_nothing_more() -> None:
    huge = [Ask(0.0, "boasts", 1, 5, 400) for _ in range(50)]
    modest = asks("modest", 50, at_s=0.0)
    world = World(document(kind="vtc", window_tokens=450), [*huge, *modest])
    most = 0

    def look(_event: Any, _commands: Any) -> None:
        nonlocal most
        most = max(most, sum(life.ask.prompt + life.ask.declared for life in world.in_flight.values()))

    world.watchers.append(look)
    world.run()
    assert len(world.ends) == 100
    assert most <= 450
    # What is charged is what was made: boasting keeps others out for a while and costs the boaster nothing.
    assert {command.output_tokens for command in world.settled if command.tenant == "boasts"} == {5}


def calls_of_an_arrival(num_tenants: int) -> int:
    """Python and C calls that it takes to admit a request when so many tenants are known and idle, but in debt."""
    core = AdmissionCore()
    core.handle(Started(0.0), 0.0)
    core.handle(PolicyApplied(1, document(kind="vtc", window_tokens=10**9, max_requests=10**6)), 0.0)
    core.handle(CapacityChanged(1, 10**9, 10**6), 0.0)
    # Everybody in flight together, so that nobody can be forgotten: all but the first end above the level.
    for number in range(num_tenants):
        core.handle(Arrived(8 * number, f"tenant{number}", "free", 5 + number % 7, 1), 0.0)
    for number in range(1, num_tenants):
        core.handle(RequestFinished(8 * number, 1), 0.0)
    num_calls = 0

    def count(_frame: Any, what: str, _argument: Any) -> None:
        nonlocal num_calls
        num_calls += what in ("call", "c_call")

    sys.setprofile(count)
    try:
        core.handle(Arrived(10**9, "newcomer", "free", 5, 5), 1.0)
    finally:
        sys.setprofile(None)
    return num_calls


def test_a_hundred_thousand_idle_tenants_cost_an_admission_nothing() -> None:
    assert calls_of_an_arrival(100_000) <= calls_of_an_arrival(10) + 5


def test_an_executor_lost_with_a_thousand_streams_releases_everything() -> None:
    trace = [Ask(0.0, f"t{number % 7}", 3, 50, 50) for number in range(1000)]
    policy = document(kind="vtc", window_tokens=100_000)
    world = World(policy, trace, Conditions(executors=4)).run(until_s=10.0)
    assert len(world.in_flight) == 1000
    world.in_flight.clear()
    world.tell(SchedulerLost())
    assert len(world.ends) == 1000
    assert world.core.window.reserved_tokens == 0
    assert not world.core.ledger.in_flight
