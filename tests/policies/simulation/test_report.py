"""From what happened to figures."""

import pytest

from policies.simulation.driver import Outcome, Served
from policies.simulation.report import percentile, report, table
from policies.simulation.workload import TraceRequest


def outcome(served: list[Served], gaps: dict[str, list[float]] | None = None) -> Outcome:
    return Outcome(
        policy="test",
        classes=[("paid", 0.5, 0.1), ("free", 5.0, 0.5)],
        served=served,
        gaps_s=gaps or {},
        simulated_s=10.0,
        preemptions=2,
        num_steps=9,
        max_gap=50.0,
        max_gap_ratio=0.5,
        jain=0.9,
    )


def served(arrived: float, first: float | None, **more: object) -> Served:
    request = Served(TraceRequest(arrived, "a", "paid", 10, 3), slo_class="paid", first_token_at_s=first)
    for name, value in more.items():
        setattr(request, name, value)
    return request


def test_percentiles_are_the_nearest_rank() -> None:
    samples = [float(number) for number in range(1, 101)]
    assert [percentile(samples, q) for q in (0.5, 0.9, 0.99, 1.0)] == [50, 90, 99, 100]
    assert percentile([1.0, 2.0, 3.0], 0.5) == 2
    assert percentile([1.0, 2.0], 0.5) == 1
    assert percentile([7.0], 0.99) == 7


def test_a_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 0.5)


def test_both_first_token_times_are_counted_from_the_arrival() -> None:
    figures = report(outcome([served(1.0, 1.5, prefill_done_at_s=1.2, finished_at_s=2.0, output_tokens=3)]), 0.1)
    assert figures["ttft_s"] == {"p50": 0.5, "p90": 0.5, "p99": 0.5, "mean": 0.5}
    assert figures["ttft_prefill_s"]["p50"] == pytest.approx(0.2)
    assert figures["tokens_per_s"] == 0.3


def test_a_request_still_waiting_is_a_miss_once_it_is_late_and_no_verdict_before() -> None:
    early, late, met = served(9.8, None), served(1.0, None), served(1.0, 1.2)
    assert report(outcome([early, late, met]), 0.0)["slo"]["paid"]["ttft"] == 0.5
    assert report(outcome([early]), 0.0)["slo"]["paid"] == {"ttft": None, "tbt": None}


def test_gaps_are_judged_by_their_class() -> None:
    figures = report(outcome([], {"paid": [0.05, 0.2], "free": [0.2]}), 0.0)
    assert figures["slo"]["paid"]["tbt"] == 0.5
    assert figures["slo"]["free"]["tbt"] == 1.0
    assert figures["tbt_s"]["all"] == {"p50": 0.2, "p99": 0.2}
    assert figures["tbt_s"]["paid"] == {"p50": 0.05, "p99": 0.2}


def test_the_report_has_the_documented_keys_in_order() -> None:
    assert list(report(outcome([]), 0.0)) == [
        "policy",
        "requests",
        "ttft_s",
        "ttft_prefill_s",
        "tbt_s",
        "tokens_per_s",
        "preemptions",
        "slo",
        "fairness",
        "simulated_s",
        "wall_s",
    ]


def test_a_run_without_a_token_still_makes_a_table() -> None:
    text = table(report(outcome([]), 0.0))
    assert "to first token                   -" in text
    assert "gap 50 = 0.50 of the bound, Jain 0.900" in text
