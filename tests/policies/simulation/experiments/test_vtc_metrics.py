"""What VTC's evaluation measures, on runs small enough to reckon by hand."""

import pytest

from policies.simulation.experiments.vtc_metrics import completed, figures, service, weighted_tokens
from policies.simulation.outcome import Served
from policies.simulation.trace_request import TraceRequest


def served(
    tenant: str,
    arrived_s: float,
    first_s: float | None,
    ended_s: float | None,
    *,
    tokens: tuple[int, int] = (100, 100),
    refusal: str = "",
) -> Served:
    one = Served(TraceRequest(arrived_s, tenant, "free", *tokens), refusal=refusal)
    one.first_token_at_s, one.finished_at_s = first_s, ended_s
    one.output_tokens = tokens[1] if ended_s is not None else 0
    return one


def test_a_requests_service_is_spread_evenly_from_its_first_token_to_its_end() -> None:
    done = completed([served("a", 0.0, 10.0, 40.0), served("b", 0.0, 35.0, 45.0)])
    cost = weighted_tokens(done.prompt_tokens, done.output_tokens)
    assert service(done, cost, 0.0, 60.0).tolist() == pytest.approx([300.0, 300.0])
    assert service(done, cost, 20.0, 40.0).tolist() == pytest.approx([200.0, 150.0])
    assert service(done, cost, 45.0, 99.0).tolist() == pytest.approx([0.0, 0.0])


def test_whoever_is_behind_counts_as_far_as_it_asked_for_more() -> None:
    # In the window from 28.5 s to 88.5 s: a got 600 and asked for 600; b got 300 and asked for 600; c asked for no more
    # than the 30 it got.
    run = [
        *(served("a", 30.0, 31.0, 80.0), served("a", 30.0, 31.0, 80.0)),
        *(served("b", 30.0, 31.0, 80.0), served("b", 30.0, 500.0, 520.0)),
        served("c", 30.0, 31.0, 80.0, tokens=(10, 10)),
    ]
    found = figures(run, weighted_tokens)
    first = found["samples"][0]
    assert (first["from_s"], len(found["samples"])) == (28.5, 19)
    assert first["service_per_s"] == pytest.approx([10.0, 5.0, 0.5])
    assert first["difference"] == pytest.approx(5.0)
    assert found["max_diff"] == pytest.approx(5.0)
    assert found["max_diff"] > found["avg_diff"] > 0.0
    assert found["max_accumulated_gap"]["warm_up_0_s"] == pytest.approx(570.0)


def test_throughput_counts_until_the_last_end_and_waits_are_by_tenant() -> None:
    run = [
        *(served("a", 0.0, 2.0, 40.0), served("a", 0.0, 4.0, 50.0)),
        *(served("b", 5.0, 6.0, 10.0), served("b", 5.0, None, None, refusal="rate_limit_exceeded")),
    ]
    found = figures(run, weighted_tokens)
    assert found["tokens_per_s"] == pytest.approx(600 / 50.0)
    assert found["rejected"] == 1
    assert found["mean_ttft_s"] == pytest.approx(7.0 / 3)
    assert found["tenants"] == [
        {"tenant": "a", "completed": 2, "mean_ttft_s": 3.0, "max_ttft_s": 4.0},
        {"tenant": "b", "completed": 1, "mean_ttft_s": 1.0, "max_ttft_s": 1.0},
    ]


def test_what_ended_in_the_first_second_or_at_once_is_no_service() -> None:
    run = [served("a", 0.0, 0.1, 0.9), served("b", 30.0, 40.0, 40.000001), served("c", 0.0, 1.0, 90.0)]
    found = figures(run, weighted_tokens)
    assert found["samples"][0]["service_per_s"] == [0.0, 0.0, pytest.approx(300 * 60.0 / 89.0 / 60.0, abs=0.01)]
    assert [tenant["completed"] for tenant in found["tenants"]] == [1, 1, 1]


def test_a_run_that_served_nobody_has_no_waits() -> None:
    found = figures([served("a", 0.0, None, None, refusal="queue_full")], weighted_tokens)
    assert (found["tokens_per_s"], found["mean_ttft_s"], found["avg_diff"]) == (0.0, None, 0.0)
    assert found["tenants"] == [{"tenant": "a", "completed": 0, "mean_ttft_s": None, "max_ttft_s": None}]
