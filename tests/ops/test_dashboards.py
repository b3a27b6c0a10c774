"""The boards, the alerts and the runbook fit each other and what the services say."""

import re
from itertools import combinations
from typing import Any

import pytest
import yaml

from services.cli import COMMANDS, POLICY_COMMANDS
from services.settings import load_deployment
from services.telemetry import names
from services.telemetry.exposition import prometheus_name
from tests.ops.boards import COMPARISON, OPS, alerts, asked, boards, data_sources, rules

METRIC = re.compile(r"\b((?:fairlead|gen_ai)_[a-z_]+)\b")
SAMPLE_ENDS = ("", "_total", "_bucket", "_sum", "_count")
KNOWN = {
    prometheus_name(metric.name, metric.unit) + end
    for metric in vars(names).values()
    if isinstance(metric, names.Metric)
    for end in SAMPLE_ENDS
}
PANELS = [
    pytest.param(panel, id=f"{name}-{panel['id']}") for name, board in boards().items() for panel in board["panels"]
]


def test_every_metric_that_is_asked_for_has_a_name_in_the_table() -> None:
    used = [(one.where, metric) for one in asked() for metric in METRIC.findall(one.expression)]
    assert len(used) > 50
    assert not [(where, metric) for where, metric in used if metric not in KNOWN]


def test_what_alerts_and_boards_take_from_rules_is_recorded() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    used = {found for one in asked() for found in re.findall(r"\bfairlead:[\w:]+", one.expression)}
    assert used == recorded


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_says_what_it_shows_in_which_unit_and_how_to_read_it(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["description"].endswith(".")
    if panel["type"] != "alertlist":
        assert panel["datasource"]["uid"] == "prometheus"
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEF"[: len(panel["targets"])])


def test_panels_of_a_board_have_numbers_of_their_own_and_do_not_overlap() -> None:
    for board in boards().values():
        panels = board["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        for one, other in combinations([panel["gridPos"] for panel in panels], 2):
            apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
            assert apart_x or apart_y, (board["title"], one, other)
        assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def test_every_board_shows_policy_revisions_and_has_an_address_of_its_own() -> None:
    assert len({board["uid"] for board in boards().values()}) == len(boards()) == 4
    for board in boards().values():
        (annotation,) = board["annotations"]["list"]
        assert "fairlead_policy_revision" in annotation["target"]["expr"]


def test_points_of_latency_panels_lead_to_traces() -> None:
    sources = {source["uid"]: source for source in data_sources()}
    (way,) = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert sources[way["datasourceUid"]]["type"] == "tempo"
    # As services/telemetry/exposition.py labels an exemplar.
    assert way["name"] == "trace_id"
    shown = [
        target
        for panel in boards()["tokens"]["panels"]
        for target in panel.get("targets", ())
        if target.get("exemplar")
    ]
    assert len(shown) >= 3
    (back,) = sources["tempo"]["jsonData"]["tracesToMetrics"]["tags"]
    assert (back["key"], back["value"]) == (names.CLASS, "class")


def test_every_alert_has_its_section_in_the_runbook_and_every_section_its_alert() -> None:
    of_alerts, _, _ = (OPS / "runbook.md").read_text().partition("\n# What `fairlead up` says")
    sections = re.split(r"^## ", of_alerts, flags=re.MULTILINE)[1:]
    titles = [section.partition("\n")[0] for section in sections]
    assert sorted(titles) == sorted(alert["alert"] for alert in alerts())
    for section in sections:
        assert re.findall(r"^\*\*(.+?)\.\*\*", section, flags=re.MULTILINE) in (
            ["Means", "Look", "Do"],
            ["Means", "Look and do"],
        )
    for alert in alerts():
        assert alert["annotations"]["runbook"] == f"ops/runbook.md#{alert['alert'].lower()}"
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert alert["annotations"]["summary"].endswith(".")


def test_what_the_runbook_explains_of_the_supervisor_is_what_it_says() -> None:
    _, _, of_supervisor = (OPS / "runbook.md").read_text().partition("\n# What `fairlead up` says")
    said = "".join(
        (OPS.parent / f"services/{name}.py").read_text() for name in ("supervisor", "rolling", "scheduler/fleet")
    )
    for words in ("starting it again", "has given no sign of life", "is given up", "not start"):
        assert words in said, words
        assert words in of_supervisor, words


def test_what_the_runbook_explains_of_the_streams_is_what_they_say() -> None:
    _, _, of_streams = (OPS / "runbook.md").read_text().partition("\n# What the streams between services say")
    names = ("framing", "hearing", "streams", "tls", "transport")
    said = "".join((OPS.parent / f"services/{name}.py").read_text() for name in names)
    for words in ("does not know the secret", "before we were let in", "its certificate is for", "which is not for it"):
        assert words in said, words
        assert words in of_streams, words


def test_commands_that_the_runbook_names_exist() -> None:
    named = re.findall(r"`fairlead (policy )?([a-z-]+)", (OPS / "runbook.md").read_text())
    assert len(named) > 5
    for policy, command in named:
        assert command in (POLICY_COMMANDS if policy else COMMANDS), command


def test_links_within_the_runbook_lead_somewhere() -> None:
    text = (OPS / "runbook.md").read_text()
    anchors = {alert["alert"].lower() for alert in alerts()}
    assert set(re.findall(r"\]\(#(\w+)\)", text)) <= anchors


def test_an_alert_compares_with_something() -> None:
    for alert in alerts():
        assert COMPARISON.search(alert["expr"]), alert["alert"]


def test_images_are_pinned_by_version_and_only_gateway_and_grafana_are_published_on_this_machine() -> None:
    services = yaml.safe_load((OPS.parent / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        if "build" not in service:
            assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name
        assert service["read_only"], name
    published = {name: port for name, service in services.items() for port in service.get("ports", ())}
    assert set(published) == {"gateway", "grafana"}
    assert all(port.startswith("127.0.0.1:") for port in published.values())


def test_prometheus_reads_every_service_where_it_answers_in_containers() -> None:
    telemetry = load_deployment(OPS / "docker" / "deployment.yaml").telemetry
    assert telemetry.metrics.host == "0.0.0.0"
    jobs = yaml.safe_load((OPS / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    ports = {job["job_name"]: job["dns_sd_configs"][0]["port"] for job in jobs if "dns_sd_configs" in job}
    assert ports == {
        name: telemetry.metrics.port_of(name) for name in ("gateway", "admission", "scheduler", "executor")
    }


def test_the_collector_listens_where_services_push_and_keeps_their_metrics_from_counting_twice() -> None:
    collector = yaml.safe_load((OPS / "otel" / "collector.yaml").read_text())
    endpoint = load_deployment(OPS / "docker" / "deployment.yaml").telemetry.endpoint
    host, port = endpoint.removeprefix("http://").split(":")
    assert host in yaml.safe_load((OPS.parent / "compose.yaml").read_text())["services"]
    assert collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"].endswith(f":{port}")
    (dropped,) = collector["processors"]["filter/scraped"]["metrics"]["metric"]
    prefix = re.search(r'"\^([\w-]+)"', dropped)
    assert prefix is not None
    assert names.SERVICE.format("gateway").startswith(prefix[1])
    for pipeline in collector["service"]["pipelines"].values():
        for kind, used in pipeline.items():
            assert set(used) <= set(collector[kind])
