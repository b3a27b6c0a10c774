"""Criteria of a capacity: as written, as judged, and as given up on."""

from math import inf
from pathlib import Path

import numpy as np
import pytest

from policies.simulation.criteria import CriterionError, Hopeless, judge, parse_criteria
from policies.simulation.driver import Simulation
from policies.simulation.executor_model import Device, FloorLinear
from policies.simulation.outcome import Outcome, Served
from policies.simulation.samples import Samples
from policies.simulation.tokens import Gaps
from policies.simulation.workload import TraceRequest

CLASSES = ("paid", "free")
SLAI = (Path(__file__).resolve().parents[3] / "policies" / "slai.yaml").read_bytes()
DEVICE = Device("ten milliseconds a step", 200, 16, 1024, FloorLinear(0.01, 0.0, 0.0, 0.0))


def samples(served: list[Served], gaps: list[tuple[int, float]] | None = None) -> Samples:
    """`gaps`: (index into `served`, seconds)."""
    rows = gaps or []
    return Samples(
        Outcome(
            policy="test",
            classes=[("paid", 0.5, 0.1), ("free", 5.0, 0.5)],
            served=served,
            gaps=Gaps(np.array([row + 1 for row, _ in rows], np.int64), np.array([gap for _, gap in rows])),
            simulated_s=10.0,
            preemptions=0,
            num_steps=1,
            num_step_tokens=1,
            tile_fill=1.0,
            max_gap=0.0,
            max_gap_ratio=0.0,
            jain=1.0,
        )
    )


def request(first: float | None, slo_class: str = "paid", *, finished: bool = True) -> Served:
    asked = TraceRequest(0.0, "a", "paid", 10, 3)
    ended = first if finished else None
    return Served(asked, slo_class, first_token_at_s=first, prefill_done_at_s=first, finished_at_s=ended)


def test_criteria_are_read_with_or_without_a_class_and_spaces() -> None:
    first, second, third = parse_criteria(
        " p50( ttft_prefill_s ) < 0.5,p99.9(tbt_s.paid)<.1,mean(e2e_s.all)<3", CLASSES
    )
    assert (first.quantile, first.metric, first.slo_class, first.limit) == (0.5, "ttft_prefill_s", None, 0.5)
    assert (second.quantile, second.slo_class) == (pytest.approx(0.999), "paid")
    assert (third.quantile, third.slo_class, third.text) == (None, None, "mean(e2e_s.all)<3")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "`` is no criterion: write STATISTIC(METRIC)<LIMIT"),
        ("p50(ttft_s)>1", "`p50(ttft_s)>1` is no criterion"),
        ("p50(ttft_s)<1,", "`` is no criterion"),
        ("p50(wait_s)<1", "`p50(wait_s)<1`: there is no metric `wait_s`: write"),
        ("p100(ttft_s)<1", "there is no statistic `p100`"),
        ("max(ttft_s)<1", "there is no statistic `max`"),
        ("p50(ttft_s.gold)<1", "the policy has no class `gold`; it has paid, free"),
        ("p50(ttft_s)<soon", "the limit `soon` is no number of seconds above 0"),
        ("p50(ttft_s)<nan", "the limit `nan` is no number"),
        ("p50(ttft_s)<-1", "the limit `-1` is no number"),
    ],
)
def test_what_is_no_criterion_is_refused_with_what_is(text: str, sentence: str) -> None:
    with pytest.raises(CriterionError) as caught:
        parse_criteria(text, CLASSES)
    assert sentence in str(caught.value)


def test_a_request_that_did_not_finish_counts_as_infinite() -> None:
    (criterion,) = parse_criteria("p50(ttft_s)<0.5", CLASSES)
    assert criterion.value(samples([request(0.1), request(0.2), request(0.3)])) == 0.2
    assert criterion.value(samples([request(0.1), request(0.2), request(0.3, finished=False)])) == 0.2
    assert criterion.value(samples([request(0.1), request(None, finished=False)] * 2)) == 0.1
    assert criterion.value(samples([request(0.1), *[request(None, finished=False)] * 2])) == inf


def test_a_request_without_a_class_yet_counts_in_every_class() -> None:
    (criterion,) = parse_criteria("p99(ttft_s.paid)<0.5", CLASSES)
    assert criterion.value(samples([request(0.1), request(9.0, "free")])) == 0.1
    assert criterion.value(samples([request(0.1), request(None, "", finished=False)])) == inf


def test_too_many_unfinished_fail_a_run_that_keeps_its_criteria() -> None:
    criteria = parse_criteria("p50(ttft_s)<0.5", CLASSES)
    served = [*[request(0.1)] * 95, *[request(None, finished=False)] * 5]
    assert not judge(criteria, samples(served)).met
    verdict = judge(criteria, samples(served), max_unfinished=0.05)
    assert verdict.met
    assert verdict.unfinished_share == 0.05
    assert verdict.values == [("p50(ttft_s)<0.5", 0.1)]


def test_gaps_are_judged_by_class_and_a_class_without_any_is_kept() -> None:
    criteria = parse_criteria("p99(tbt_s.paid)<0.1,p99(tbt_s.free)<0.1", CLASSES)
    assert judge(criteria, samples([request(0.1)], [(0, 0.05)])).met
    assert not judge(criteria, samples([request(0.1, "free")], [(0, 0.15)])).met


@pytest.mark.parametrize(
    "text", ["p50(ttft_s)<0.05", "p90(ttft_prefill_s)<0.02", "p50(tbt_s.free)<0.015", "p99(tbt_s)<0.01"]
)
@pytest.mark.parametrize("rate", [20.0, 60.0, 200.0])
def test_a_run_is_only_given_up_where_its_end_would_have_failed_it(text: str, rate: float) -> None:
    workload = [TraceRequest(n / rate, "a", "free", 60, 4) for n in range(400)]
    criteria = parse_criteria(text, CLASSES)
    cut = Simulation(SLAI, workload, DEVICE, give_up=Hopeless(criteria, workload, None)).run()
    whole = judge(criteria, Samples(Simulation(SLAI, workload, DEVICE).run()))
    assert not (cut.given_up and whole.met)


def test_an_overloaded_run_is_given_up_early() -> None:
    workload = [TraceRequest(n / 400, "a", "free", 60, 40) for n in range(2000)]
    criteria = parse_criteria("p50(ttft_s)<0.05", CLASSES)
    cut = Simulation(SLAI, workload, DEVICE, give_up=Hopeless(criteria, workload, None)).run()
    assert cut.given_up
    assert len(cut.served) < 1500
