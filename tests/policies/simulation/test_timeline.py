"""What a run looked like over time."""

from pathlib import Path

import pytest

from policies.simulation.driver import Simulation
from policies.simulation.executor_model import DEVICES
from policies.simulation.replay_page import replay_page
from policies.simulation.report import report
from policies.simulation.synthetic import synthetic
from policies.simulation.timeline import MOST_POINTS, Timeline
from policies.simulation.trace_request import TraceRequest

SLAI = (Path(__file__).resolve().parents[3] / "policies" / "slai.yaml").read_bytes()
TOY = DEVICES["toy-tile"](1.0)


def watched(requests: list[TraceRequest]) -> tuple[Simulation, Timeline]:
    simulation = Simulation(SLAI, requests, TOY)
    return simulation, Timeline(simulation)


def chat(duration_s: float) -> list[TraceRequest]:
    return synthetic("chat", qps=5.0, duration_s=duration_s, seed=1, max_sequence_tokens=1000)


def test_points_are_bounded_however_long_a_run_is_and_lose_no_token() -> None:
    simulation, timeline = watched(chat(30.0))
    outcome = simulation.run()
    points = timeline.points
    assert MOST_POINTS // 4 < len(points) <= MOST_POINTS
    counted = sum(point.prefill_tokens + point.decode_tokens for point in points)
    # The last stretch is not over when the run is.
    assert 0.98 * outcome.num_step_tokens < counted <= outcome.num_step_tokens
    assert [point.ended_at_s for point in points] == sorted(point.ended_at_s for point in points)
    assert all(point.num_steps and 0 <= point.kv_use <= 1 for point in points)


def test_a_tenants_service_is_its_prompts_and_its_output() -> None:
    requests = [TraceRequest(0.0, "a", "free", 100, 500), TraceRequest(0.0, "b", "free", 50, 500)]
    simulation, timeline = watched(requests)
    simulation.run()
    assert timeline.tenants == ["a", "b"]
    last = timeline.points[-1]
    assert last.service == pytest.approx([600, 550], abs=5)


def test_the_page_of_a_run_shows_its_classes_tenants_and_lengths_and_asks_no_network() -> None:
    simulation, timeline = watched(chat(20.0))
    outcome = simulation.run()
    html = replay_page(report(outcome, 0.1), outcome, timeline, "chat <on a toy>")
    for word in (
        "Replay of slai",
        "chat &lt;on a toy&gt;",
        "paid limit",
        "globex",
        "Time to first token by prompt length",
    ):
        assert word in html
    assert "<script src" not in html
    assert "<link" not in html


def test_a_run_without_a_request_makes_a_page_too() -> None:
    simulation, timeline = watched([])
    outcome = simulation.run()
    assert "Service by tenant" in replay_page(report(outcome, 0.0), outcome, timeline, "nothing")
