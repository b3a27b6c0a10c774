from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.admission.meter import FairnessReport, Meter
from policies.admission.nodes import Node
from tests.policies.admission.test_fairness_bounds import asks
from tests.policies.admission.worlds import Ask, Conditions, World, document, random_trace

BUSY = [*asks("a", 60, at_s=0.0), *asks("b", 60, at_s=0.0), *asks("quiet", 1, at_s=0.0)]


def metered(trace: list[Ask], until_s: float = float("inf"), **fairness: object) -> tuple[World, FairnessReport]:
    """A world with a meter, and its report at that time."""
    world = World(document(**{"kind": "vtc", "window_tokens": 60, **fairness}), trace)
    meter = Meter(world.core)
    world.watchers.append(lambda event, commands: meter.look(world.now, event, commands))
    world.run(until_s)
    return world, meter.report(world.now)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(min_value=0, max_value=2**32))
def test_it_counts_every_token_of_every_tenant_once(seed: int) -> None:
    world, report = metered(random_trace(seed, weights=True))
    for row in report.tenants:
        mine = [life for life in world.lives.values() if life.ask.tenant == row.tenant and life.released_s is not None]
        assert row.output_tokens == sum(life.made for life in mine)
        assert row.prompt_tokens == sum(0 if life.refunded else life.ask.prompt for life in mine)
        assert row.num_requests == len(mine)
    assert report.idle_s == 0.0
    assert report.max_gap_ratio <= 1.0
    assert report.pair_difference <= report.pair_bound


def test_in_the_middle_it_shows_who_waits_what_is_in_flight_and_how_far_apart_they_are() -> None:
    world, report = metered(BUSY, until_s=60.0)
    rows = {row.tenant: row for row in report.tenants}
    assert rows["a"].num_waiting == len(world.waiting["a"]) > 0
    assert rows["a"].num_in_flight + rows["b"].num_in_flight == len(world.in_flight) == report.window.num_requests
    assert 50.0 <= rows["a"].backlogged_s <= 60.0
    assert rows["quiet"].num_waiting == rows["quiet"].num_in_flight == 0
    assert (report.num_backlogged, report.num_asking) == (2, 2)
    assert report.gap == abs(rows["a"].counter - rows["b"].counter) <= report.bound
    assert report.pair_difference > 0.0
    assert report.jain == pytest.approx(1.0, abs=0.05)


def test_the_wait_bound_is_the_theorems_with_the_measured_speed() -> None:
    _, report = metered(BUSY, until_s=60.0)
    rows = {row.tenant: row for row in report.tenants}
    assert report.served_per_s > 0.0
    # `quiet` would be the third to ask, `a` has one other beside it.
    assert rows["quiet"].wait_bound_s == pytest.approx(2 * 2 * report.bound / report.served_per_s)
    assert rows["a"].wait_bound_s == pytest.approx(2 * 1 * report.bound / report.served_per_s)
    assert report.window.bound_s == pytest.approx(2 * report.window.bound / report.served_per_s)
    assert report.window.bound == 2.0 * report.window.bound_tokens


def test_a_newcomer_is_let_in_within_the_wait_that_was_promised() -> None:
    newcomer = Ask(60.5, "newcomer", 20, 10, 10)
    world, _ = metered([*BUSY, newcomer], until_s=59.0)
    promised_s = next(row.wait_bound_s for row in Meter(world.core).report(world.now, "newcomer").tenants)
    assert promised_s is not None
    world.run()
    (life,) = [life for life in world.lives.values() if life.ask == newcomer]
    assert life.released_s is not None
    assert 0.0 < life.released_s - newcomer.at_s <= promised_s


def test_before_anything_was_served_no_wait_is_promised() -> None:
    _, report = metered([Ask(0.0, "a", 5, 5, 5)], until_s=0.0)
    assert report.tenants[0].wait_bound_s is None
    assert report.window.bound_s is None


def test_asked_for_one_tenant_it_tells_of_that_one_alone_known_or_not() -> None:
    world, _ = metered(BUSY, until_s=30.0)
    meter = Meter(world.core)
    assert [row.tenant for row in meter.report(world.now, "a").tenants] == ["a"]
    (stranger,) = meter.report(world.now, "stranger").tenants
    assert (stranger.num_waiting, stranger.output_tokens, stranger.counter) == (0, 0, 0.0)


def test_lifts_are_counted_with_their_size() -> None:
    trace = [*asks("steady", 40, at_s=0.0), *asks("late", 5, at_s=50.0)]
    _, before = metered(trace, until_s=49.0)
    _, report = metered(trace, until_s=50.0)
    assert before.num_lifts == 0
    assert report.num_lifts == 1
    assert report.lifted > 0.0


def test_under_fcfs_the_pair_difference_shows_what_a_flood_takes() -> None:
    flood, modest = asks("flood", 100, at_s=0.0), asks("modest", 5, at_s=0.5)
    _, fcfs = metered([*flood, *modest], until_s=120.0, kind="fcfs")
    _, vtc = metered([*flood, *modest], until_s=120.0)
    assert fcfs.pair_difference > fcfs.pair_bound
    assert vtc.pair_difference <= vtc.pair_bound


def test_what_auto_does_to_the_window_is_told() -> None:
    world = World(document(kind="vtc", window_tokens="auto"), BUSY, Conditions())
    world.run(until_s=5.0)
    window = Meter(world.core).report(world.now).window
    assert window.auto == "measuring the pool-sized window"
    assert window.pool_tokens == window.limit_tokens == 990


def test_whoever_asks_often_does_not_change_over_how_long_tenants_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policies.admission.meter.NUM_AGES", 2)

    def difference(polls_per_s: int) -> float:
        world = World(document(kind="vtc", window_tokens=60), BUSY)
        meter = Meter(world.core)
        world.watchers.append(lambda event, commands: meter.look(world.now, event, commands))
        for poll in range(60 * polls_per_s):
            world.run(poll / polls_per_s)
            meter.report(world.now)
        return meter.report(world.now).pair_difference

    assert difference(20) >= difference(1) > 0


def test_a_report_costs_by_who_is_here_and_not_by_who_is_known() -> None:
    world, _ = metered(BUSY, until_s=60.0)
    meter, known = Meter(world.core), world.core.queue.accounts

    class Unreadable(dict[str, Node]):
        def values(self) -> NoReturn:
            raise AssertionError("every tenant known was looked at")

    world.core.queue.root.children = Unreadable(known)
    report = meter.report(world.now, "quiet")
    assert (report.num_backlogged, report.num_asking) == (2, 2)
    assert [row.tenant for row in report.tenants] == ["quiet"]
