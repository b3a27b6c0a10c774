"""The left side of VTC's theorem, on counters set by hand."""

from types import SimpleNamespace
from typing import Any

from policies.simulation.experiments.vtc_pairs import PairMeter


def seen(*backlogs: dict[str, float]) -> float:
    """The largest difference after these counters, one event each."""
    queue = SimpleNamespace(backlogged=list)
    core: Any = SimpleNamespace(queue=queue)
    meter = PairMeter(core)
    for backlog in backlogs:
        tenants = [SimpleNamespace(name=name, counter=counter) for name, counter in backlog.items()]
        queue.backlogged = lambda tenants=tenants: tenants
        meter("admission", 0.0, None, [])
        meter("scheduler", 0.0, None, [])
    return meter.largest


def test_a_pairs_services_differ_by_how_far_the_difference_of_their_counters_moved() -> None:
    assert seen({"a": 5.0, "b": 9.0}) == 0.0
    assert seen({"a": 5.0, "b": 9.0}, {"a": 15.0, "b": 9.0}, {"a": 15.0, "b": 12.0}) == 10.0
    assert seen({"a": 0.0, "b": 0.0, "c": 0.0}, {"a": 1.0, "b": 0.0, "c": 7.0}) == 7.0


def test_only_while_both_wait_it_counts() -> None:
    left_and_back = ({"a": 0.0, "b": 0.0}, {"a": 4.0, "b": 0.0}, {"a": 50.0}, {"a": 50.0, "b": 0.0})
    assert seen(*left_and_back, {"a": 53.0, "b": 0.0}) == 4.0
    assert seen(*left_and_back, {"a": 55.0, "b": 0.0}) == 5.0


def test_pairs_that_stay_keep_what_was_seen_of_them_when_others_come_and_go() -> None:
    assert seen({"a": 0.0, "b": 0.0}, {"a": 4.0, "b": 0.0}, {"c": 1.0, "a": 4.0, "b": 0.0}, {"a": 4.0, "b": 9.0}) == 9.0
