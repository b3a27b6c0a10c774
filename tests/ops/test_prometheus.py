"""Every PromQL expression of boards and alerts, asked of a real Prometheus that reads the services of a live run."""

import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.telemetry import names
from services.telemetry.exposition import prometheus_name
from tests.ops.boards import OPS, RULES, Asked, alerts, asked
from tests.ops.live import POLICY, House, house

pytestmark = [
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus (apt-get install prometheus)"),
    pytest.mark.slow,
]
VARIABLES = {"$__rate_interval": "5s", "$__interval": "5s", "$class": ".*", "{$__tags}": '{class="paid"}'}
"""What Grafana fills in, for a run of some seconds."""
NEED_AN_EVENT: dict[str, str] = {}
"""Metrics that this run does not show, and what they need."""
CASES = Path(__file__).with_name("alerts.yml")
"""What raises each alert, in made-up figures."""
REJECTED = POLICY.replace("queue:", "queues:")
RENAMED = POLICY.replace("name: boards", "name: board")


def filled_in(expression: str) -> str:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """After some traffic, one policy that was applied and one that was rejected."""
    with house(tmp_path_factory.mktemp("live")) as running:
        running.wait_until("count(max by (job) (up) == 1) == 4")
        statuses = running.load()
        assert set(statuses) == {200, 429}
        running.policy.write_text(RENAMED)
        running.wait_until("max(fairlead_policy_revision) == 2")
        running.policy.write_text(REJECTED)
        running.wait_until('fairlead_policy_reloads_total{outcome="rejected"} == 1')
        running.load()
        running.wait_until('fairlead_requests_total{outcome="finished"} > 20')
        yield running


@pytest.mark.parametrize("one", [pytest.param(one, id=one.where) for one in asked()])
def test_an_expression_parses_and_has_data(live: House, one: Asked) -> None:
    series = live.series(filled_in(one.expression))
    assert any(not math.isnan(float(value)) for each in series for _, value in each["values"]), one.expression


def test_every_metric_in_the_table_is_shown_by_some_service(live: House) -> None:
    shown = set(live.ask("label/__name__/values"))
    metrics = [metric for metric in vars(names).values() if isinstance(metric, names.Metric)]
    missing = {
        metric.name
        for metric in metrics
        if not {prometheus_name(metric.name, metric.unit) + end for end in ("", "_total", "_bucket")} & shown
    }
    assert missing == set(NEED_AN_EVENT)


def test_latencies_come_with_traces(live: House) -> None:
    for metric in ("fairlead_token_gap_seconds_bucket", "gen_ai_server_time_to_first_token_seconds_bucket"):
        found: list[dict[str, Any]] = live.ask(
            "query_exemplars", query=metric, start=f"{live.began_s}", end=f"{live.began_s + 600}"
        )
        traces = {exemplar["labels"]["trace_id"] for each in found for exemplar in each["exemplars"]}
        assert traces
        assert all(len(trace) == 32 for trace in traces)


def test_broken_promises_raise_the_alert_and_nothing_is_down(live: House) -> None:
    live.wait_until('ALERTS{alertname="FairleadSloBurnFast",class="paid"}')
    raised = {series["labels"]["alertname"] for series in live.ask("alerts")["alerts"]}
    assert "FairleadServiceDown" not in raised
    assert "FairleadExecutorDown" not in raised
    assert "FairleadPolicyRejected" in raised


@pytest.mark.parametrize(
    ("command", "file"),
    [("check rules", RULES), ("check config", OPS / "prometheus" / "prometheus.yml"), ("test rules", CASES)],
)
def test_promtool_finds_nothing_wrong(command: str, file: Path) -> None:
    done = subprocess.run(["promtool", *command.split(), str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_raised_by_some_case() -> None:
    assert {alert["alert"] for alert in alerts()} == set(re.findall(r'\{alertname="(\w+)"', CASES.read_text()))
