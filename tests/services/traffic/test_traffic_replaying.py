from pathlib import Path

import numpy as np
import pytest

from policies.admission.cost import Prices
from policies.document.compile import compile_admission
from policies.document.loading import load_policy
from policies.simulation.driver import Simulation
from policies.simulation.executor_model import Device, FloorLinear
from policies.simulation.report import report
from policies.simulation.workload import TraceRequest, synthetic
from services.traffic import gaps
from services.traffic.replaying import as_window
from services.traffic.rows import RequestRow

POLICY = (Path(__file__).resolve().parents[3] / "policies" / "slai.yaml").read_bytes()
DEVICE = Device("a small one", 200, 16, 1024, FloorLinear(0.01, 0.005, 1e-4, 1e-7))
BEGAN = 1.7e9


def row(**fields: object) -> RequestRow:
    stamps = np.cumsum(np.full(8, 50_000_000))
    plain = RequestRow(
        unix_s=BEGAN,
        tenant="acme",
        tier="free",
        weight=1.0,
        service_tier=None,
        allowed_classes="",
        slo_class="free",
        prompt_tokens=20,
        max_output_tokens=100,
        num_choices=1,
        output_tokens=8,
        outcome="finished",
        code="",
        ttft_s=0.5,
        gaps=gaps.pack([stamps]),
        key_tokens=0,
        prompt_keys=b"",
        revision=1,
    )
    return plain._replace(**fields)


def test_what_was_recorded_of_a_run_reports_as_the_run_does() -> None:
    workload = synthetic("shared_prefixes", qps=5.0, duration_s=20.0, seed=3, max_sequence_tokens=1024)
    outcome = Simulation(POLICY, workload, DEVICE).run()
    rows = []
    for number, served in enumerate(outcome.served, start=1):
        asked = served.asked
        seconds = outcome.gaps.seconds[outcome.gaps.requests == number]
        stamps = np.cumsum(np.concatenate([[0], np.rint(seconds * 1e9).astype(np.int64)]))
        rows.append(
            row(
                unix_s=BEGAN + asked.arrived_at_s,
                tenant=asked.tenant,
                tier=asked.tier,
                slo_class=served.slo_class,
                prompt_tokens=asked.prompt_tokens,
                max_output_tokens=asked.declared_tokens,
                output_tokens=served.output_tokens,
                ttft_s=served.first_token_at_s - asked.arrived_at_s,
                gaps=gaps.pack([stamps]),
                key_tokens=asked.key_tokens,
                prompt_keys=asked.prompt_keys,
            )
        )
    policy = load_policy(POLICY)
    window = as_window(rows)
    first = workload[0].arrived_at_s
    for recorded, asked in zip(window.requests, workload, strict=True):
        assert recorded.arrived_at_s == pytest.approx(asked.arrived_at_s - first, abs=1e-5)
        assert recorded._replace(arrived_at_s=0, max_output_tokens=None) == asked._replace(arrived_at_s=0)
    figures = report(window.outcome(policy, compile_admission(policy).cost), 0.0)
    truth = report(outcome, 0.0)
    assert figures["requests"]["finished"] == truth["requests"]["finished"] == len(rows)
    for group in ("classes", "tenants"):
        assert figures[group].keys() == truth[group].keys()
        for name, expected in truth[group].items():
            for metric in ("ttft_s", "tbt_s"):
                for quantile in ("p50", "p99"):
                    found = figures[group][name][metric][quantile]
                    assert found == pytest.approx(expected[metric][quantile], rel=0.011)
            assert figures[group][name]["goodput_rps"] == pytest.approx(expected["goodput_rps"], rel=0.1)
    assert figures["fairness"]["jain"] == pytest.approx(truth["fairness"]["jain"], abs=0.02)


def test_a_request_of_several_choices_is_as_many_that_arrive_together() -> None:
    window = as_window([row(num_choices=3, output_tokens=10, allowed_classes="free,paid", service_tier="flex")])
    assert [served.output_tokens for served in window.happened] == [4, 3, 3]
    assert {asked.arrived_at_s for asked in window.requests} == {0.0}
    assert {asked.allowed_classes for asked in window.requests} == {("free", "paid")}
    assert set(window.gaps.requests.tolist()) == {1}


def test_a_request_is_replayed_by_the_project_and_key_that_sent_it() -> None:
    (asked,) = as_window([row(project="web", key="key_1")]).requests
    assert (asked.project, asked.key) == ("web", "key_1")


def test_one_that_was_refused_is_replayed_with_the_usual_output_of_its_tenant() -> None:
    refused = row(outcome="refused", code="queue_full", ttft_s=None, gaps=b"", output_tokens=0, slo_class="")
    rows = [row(output_tokens=number, gaps=b"") for number in (3, 5, 40)]
    stranger = refused._replace(tenant="globex", max_output_tokens=7)
    window = as_window([*rows, refused, stranger])
    assert [asked.output_tokens for asked in window.requests] == [3, 5, 40, 5, 7]
    assert [served.refusal for served in window.happened] == ["", "", "", "queue_full", "queue_full"]


def test_one_that_ended_without_a_token_is_left_out_and_counted() -> None:
    gone = row(outcome="cancelled", code="client_gone", ttft_s=None, gaps=b"", output_tokens=0)
    lost = gone._replace(outcome="lost")
    left = row(outcome="cancelled", code="client_gone", output_tokens=2)
    window = as_window([row(), gone, left, lost])
    assert (len(window.happened), window.num_left_out) == (2, 2)
    assert window.happened[1].asked == TraceRequest(0.0, "acme", "free", 20, 2, max_output_tokens=100)
    assert window.happened[1].finished_at_s is not None


def test_an_embedding_is_replayed_as_one_token() -> None:
    window = as_window([row(max_output_tokens=1, output_tokens=0, gaps=b"")])
    assert (window.requests[0].output_tokens, window.duration_s) == (1, 0.5)


def test_service_is_compared_at_the_last_arrival_over_the_weights() -> None:
    early, heavy = row(gaps=b"", output_tokens=1), row(gaps=b"", output_tokens=1, tenant="globex", weight=2.0)
    last = row(unix_s=BEGAN + 100, prompt_tokens=1)
    policy, prices = load_policy(POLICY), Prices(1.0, 2.0)
    assert as_window([early, heavy, heavy, last]).outcome(policy, prices).jain == pytest.approx(1.0)
    assert as_window([early, heavy, last]).outcome(policy, prices).jain == pytest.approx(0.9)
