"""From what happened to figures."""

import numpy as np
import pytest

from policies.scheduling.lengths.lengths import Coverage
from policies.simulation.outcome import Outcome, Served
from policies.simulation.report import report
from policies.simulation.report_table import table
from policies.simulation.samples import percentile
from policies.simulation.tokens import Gaps
from policies.simulation.workload import TraceRequest


def outcome(served: list[Served], gaps: list[tuple[int, float]] | None = None) -> Outcome:
    """`gaps`: (index into `served`, seconds)."""
    rows = gaps or []
    return Outcome(
        policy="test",
        classes=[("paid", 0.5, 0.1), ("free", 5.0, 0.5)],
        served=served,
        gaps=Gaps(np.array([row + 1 for row, _ in rows], np.int64), np.array([gap for _, gap in rows])),
        simulated_s=10.0,
        preemptions=2,
        num_steps=10,
        num_step_tokens=640,
        tile_fill=0.5,
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
    assert figures["ttft_s"] == {"p50": 0.5, "p90": 0.5, "p99": 0.5, "mean": 0.5, "num": 1}
    assert figures["ttft_prefill_s"]["p50"] == pytest.approx(0.2)
    assert figures["tokens_per_s"] == 0.3


def test_a_request_still_waiting_is_a_miss_once_it_is_late_and_no_verdict_before() -> None:
    early, late, met = served(9.8, None), served(1.0, None), served(1.0, 1.2)
    assert report(outcome([early, late, met]), 0.0)["slo"]["paid"]["ttft"] == 0.5
    assert report(outcome([early]), 0.0)["slo"]["paid"] == {"ttft": None, "tbt": None}


def test_gaps_are_judged_by_their_class() -> None:
    both = [served(0.0, 0.1), served(0.0, 0.1, slo_class="free")]
    figures = report(outcome(both, [(0, 0.2), (1, 0.2), (0, 0.05)]), 0.0)
    assert figures["slo"]["paid"]["tbt"] == 0.5
    assert figures["slo"]["free"]["tbt"] == 1.0
    assert (figures["tbt_s"]["all"]["p50"], figures["tbt_s"]["all"]["num"]) == (0.2, 3)
    assert (figures["tbt_s"]["paid"]["p50"], figures["tbt_s"]["paid"]["p99"]) == (0.05, 0.2)
    assert figures["classes"]["free"]["tbt_s"]["num"] == 1


def test_goodput_counts_what_finished_with_its_first_token_and_its_gaps_in_time() -> None:
    requests = [
        served(0.0, 0.1, finished_at_s=1.0),
        served(0.0, 0.1),  # not finished
        served(0.0, 0.6, finished_at_s=1.0),  # first token late
        served(0.0, 0.1, finished_at_s=1.0),  # one late gap of two
        served(0.0, 0.1, finished_at_s=1.0),  # one late gap of a hundred
    ]
    gaps = [(3, 0.05), (3, 0.2), (4, 0.2), *[(4, 0.05)] * 99]
    assert report(outcome(requests, gaps), 0.0)["goodput_rps"] == pytest.approx(2 / 10.0)


def test_what_ended_otherwise_is_counted_and_not_called_unfinished() -> None:
    requests = [
        served(0.0, 0.1, finished_at_s=1.0, num_starts=2),
        served(0.0, None),
        served(0.0, None, refusal="queue_full", slo_class=""),
        served(0.0, 0.1, cancellation="client_gone"),
    ]
    expected = {"arrived": 4, "finished": 1, "unfinished": 1, "refused": 1, "cancelled": 1, "preempted": 1}
    assert report(outcome(requests), 0.0)["requests"] == expected


def test_requests_that_did_not_finish_count_where_they_got_to_and_are_left_out_of_those_that_finished() -> None:
    figures = report(outcome([served(0.0, 0.1, finished_at_s=1.0), served(0.0, 4.0)]), 0.0)
    assert (figures["ttft_s"]["p99"], figures["ttft_s"]["num"]) == (4.0, 2)
    assert (figures["of_finished"]["ttft_s"]["p99"], figures["of_finished"]["ttft_s"]["num"]) == (0.1, 1)
    assert figures["e2e_s"]["num"] == 1


def test_time_per_output_token_is_of_the_tokens_after_the_first() -> None:
    request = served(0.0, 1.0, finished_at_s=3.0, last_token_at_s=3.0, output_tokens=5)
    assert report(outcome([request]), 0.0)["tpot_s"]["mean"] == pytest.approx(0.5)


def test_prompt_lengths_are_put_into_at_most_sixteen_buckets_of_a_power_of_two() -> None:
    requests = [
        Served(TraceRequest(0.0, "a", "paid", prompt, 1), slo_class="paid", first_token_at_s=prompt / 1000)
        for prompt in (512, 513, 1024, 8141)
    ]
    buckets = report(outcome(requests), 0.0)["prompt_lengths"]
    assert [(bucket["from_tokens"], bucket["to_tokens"]) for bucket in buckets] == [(1, 512), (513, 1024), (7681, 8192)]
    assert [bucket["requests"]["arrived"] for bucket in buckets] == [1, 2, 1]
    assert buckets[1]["ttft_s"]["p99"] == pytest.approx(1.024)
    (whole,) = report(outcome(requests), 0.0, bucket_tokens=10_000)["prompt_lengths"]
    assert whole["to_tokens"] == 10_000


def test_hits_of_the_prefix_cache_are_a_share_of_the_prompts_that_were_started() -> None:
    requests = [served(0.0, 1.0, first_scheduled_at_s=0.5, prefix_hit_tokens=4), served(0.0, None)]
    assert report(outcome(requests), 0.0)["prefix"] == {"prompt_tokens": 10, "hit_tokens": 4, "hit_share": 0.4}


def test_the_arrival_rate_is_as_measured() -> None:
    assert report(outcome([served(1.0, None), served(4.0, None)]), 0.0)["arrival_rate_rps"] == 0.5


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
        "arrival_rate_rps",
        "goodput_rps",
        "first_gap_s",
        "scheduling_delay_s",
        "tpot_s",
        "e2e_s",
        "of_finished",
        "prefix",
        "steps",
        "classes",
        "tenants",
        "prompt_lengths",
        "recomputed_tokens",
        "prediction",
    ]


def test_a_run_without_a_token_still_makes_a_table() -> None:
    text = table(report(outcome([]), 0.0))
    assert "to first token                   -" in text
    assert "gap 50 = 0.50 of the bound, Jain 0.900" in text


def test_the_table_shows_tenants_and_prompt_lengths_where_there_are_several() -> None:
    requests = [
        Served(TraceRequest(0.0, f"tenant{n}", "paid", 100 * n, 1), slo_class="paid", first_token_at_s=1.0)
        for n in range(1, 11)
    ]
    lines = table(report(outcome(requests), 0.0)).splitlines()
    assert any(line.startswith("tenant (8 of 10)") for line in lines)
    assert any(line.startswith("  961-1024") for line in lines)


def test_predicted_lengths_are_reported_with_how_often_they_held() -> None:
    run = outcome([served(1.0, 1.5)])
    assert report(run, 0.0)["prediction"] is None
    assert "predicted" not in table(report(run, 0.0))
    run.coverage = Coverage(4, 3, 4, 40, 60, 400, 240)
    figures = report(run, 0.0)
    assert figures["prediction"] == {
        "num": 4,
        "coverage": {"lower": 0.75, "upper": 1.0},
        "interval_tokens": {"lower": 10.0, "point": 15.0, "upper": 100.0},
        "output_tokens": 60.0,
    }
    assert "predicted 10 to 100 output tokens on average, were 60; the lower bound held for 75.0%" in table(figures)
