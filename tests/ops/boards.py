"""What dashboards and alert rules ask Prometheus, read from the files that are shipped."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

OPS = Path(__file__).resolve().parents[2] / "ops"
RULES = OPS / "prometheus" / "rules.yml"
BOARDS = sorted((OPS / "grafana" / "dashboards").glob("*.json"))
COMPARISON = re.compile(r"\s*(==|!=|<=|>=|<|>)\s*(bool\s+)?\d[\d.]*(\s*\*\s*\d[\d.]*)?")


class Asked(NamedTuple):
    """One PromQL expression and where it stands."""

    where: str
    expression: str


def boards() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in BOARDS}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def data_sources() -> list[dict[str, Any]]:
    file = OPS / "grafana" / "provisioning" / "datasources" / "datasources.yaml"
    # As Grafana does: two dollar signs are one.
    sources: list[dict[str, Any]] = yaml.safe_load(file.read_text().replace("$$", "$"))["datasources"]
    return sources


def asked() -> Iterator[Asked]:
    """All of them; an alert's without its comparisons, so that it answers while nothing is wrong."""
    for name, board in boards().items():
        for panel in board["panels"]:
            for target in panel.get("targets", ()):
                yield Asked(f"{name}: {panel['title']}", target["expr"])
        for annotation in board["annotations"]["list"]:
            yield Asked(f"{name}: annotation {annotation['name']}", annotation["target"]["expr"])
    for rule in rules():
        if "alert" in rule:
            yield Asked(f"alert {rule['alert']}", COMPARISON.sub("", rule["expr"]))
        else:
            yield Asked(f"rule {rule['record']}", rule["expr"])
    for source in data_sources():
        for query in source["jsonData"].get("tracesToMetrics", {}).get("queries", ()):
            yield Asked(f"traces: {query['name']}", query["query"])
