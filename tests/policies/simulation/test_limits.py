"""Limits in virtual time: the simulator answers for the store."""

from collections import defaultdict
from pathlib import Path

import yaml

from policies.simulation.driver import Simulation
from policies.simulation.executor_model import Device, FloorLinear
from policies.simulation.outcome import Outcome
from policies.simulation.workload import TraceRequest

FCFS = (Path(__file__).resolve().parents[3] / "policies" / "fcfs.yaml").read_text()
DEVICE = Device("ten ms a step", 2000, 16, 1024, FloorLinear(floor_s=0.01, fixed_s=0.0, token_s=0.0, kv_token_s=0.0))


def run(limits: list[dict[str, object]], requests: list[TraceRequest]) -> Outcome:
    document = yaml.safe_load(FCFS) | {"limits": limits}
    simulation = Simulation(yaml.safe_dump(document).encode(), requests, DEVICE, check=True)
    outcome = simulation.run()
    assert simulation.admission.intake.taken == {}
    assert simulation.admission.intake.pending == {}
    return outcome


def test_requests_per_minute_refuse_as_the_papers_window_does() -> None:
    requests = [TraceRequest(0.7 * number, f"t{number % 3}", "free", 20, 10) for number in range(250)]
    outcome = run(
        [{"scope": "tenant", "dimension": "requests", "rate_per_min": 5, "algorithm": "sliding_log"}], requests
    )
    accepted: dict[str, list[float]] = defaultdict(list)
    expected = []
    for request in requests:
        at = request.arrived_at_s
        lets_in = sum(at - before <= 60.0 for before in accepted[request.tenant]) < 5
        expected.append(lets_in)
        if lets_in:
            accepted[request.tenant].append(at)
    assert [not served.refusal for served in outcome.served] == expected
    assert {served.refusal for served in outcome.served} == {"", "rate_limit_exceeded"}
    assert expected.count(True) == 45


def test_tokens_that_were_not_produced_come_back_when_a_request_ends() -> None:
    limit = {"scope": "tenant", "dimension": "output_tokens", "rate_per_day": 100, "burst": 100}
    asked = [TraceRequest(float(second), "a", "free", 20, 10, max_output_tokens=90) for second in range(12)]
    outcome = run([limit], asked)
    assert [served.refusal for served in outcome.served] == ["", ""] + ["rate_limit_exceeded"] * 10


def test_a_count_of_what_is_open_is_free_again_after_the_end() -> None:
    limit = {"scope": "model", "dimension": "concurrency", "max": 1}
    asked = [TraceRequest(at, "a", "free", 20, 10) for at in (0.0, 0.05, 1.0)]
    outcome = run([limit], asked)
    assert [served.refusal for served in outcome.served] == ["", "rate_limit_exceeded", ""]
