"""What a new policy would change, from three reports on the same requests: what happened, and two replays.

Owns the comparison. The replay under the policy in force, held against what happened, says how far the prediction can
be believed: a change that is smaller than that error is none. Runs nothing.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from msgspec import Struct

Figures = Mapping[str, Any]

EVERYONE = "everyone"


class Metric(NamedTuple):
    """A figure of a report's group."""

    name: str
    path: tuple[str, ...]
    unit: str
    more_is_better: bool = False
    is_recorded: bool = True


METRICS = (
    Metric("TTFT p50", ("ttft_s", "p50"), "s"),
    Metric("TTFT p99", ("ttft_s", "p99"), "s"),
    Metric("TBT p50", ("tbt_s", "p50"), "s"),
    Metric("TBT p99", ("tbt_s", "p99"), "s"),
    Metric("goodput", ("goodput_rps",), "req/s", more_is_better=True),
)
FAIRNESS = (
    Metric("Jain's index", ("fairness", "jain"), "", more_is_better=True),
    Metric("largest gap", ("fairness", "max_gap"), "cost", is_recorded=False),
)
"""Of all tenants together. The gap between their counters is not recorded: it is known of the replays alone."""


VERDICTS = {"unsure": "within the error", "same": "same", "better": "better", "worse": "worse", "": ""}


class Line(Struct, frozen=True):
    """One figure of a group of requests, in all three reports; None: it had no samples there."""

    group: str
    """`everyone`, `class paid`, `tenant acme`."""
    metric: str
    unit: str
    recorded: float | None
    now: float | None
    """Replayed under the policy in force."""
    then: float | None
    """Replayed under the new one."""
    change: float | None
    """`then / now - 1`."""
    error: float | None
    """`now / recorded - 1`."""
    verdict: str
    """`better`, `worse`, `same`, or `unsure`: less than the replay's own error. Empty: nothing to judge."""


def compare(recorded: Figures, now: Figures, then: Figures) -> list[Line]:
    """Everyone, then each class, then each tenant; reports of `policies.simulation.report`.

    A group is one of any of the reports: a new policy may have other classes.
    """
    lines = [_line(EVERYONE, metric, recorded, now, then) for metric in (*_of_all(), *FAIRNESS)]
    for kind, groups in (("class", "classes"), ("tenant", "tenants")):
        names = dict.fromkeys(name for report in (recorded, now, then) for name in report[groups])
        for name in names:
            of_group = [report[groups].get(name, {}) for report in (recorded, now, then)]
            lines += [_line(f"{kind} {name}", metric, *of_group) for metric in METRICS]
    return lines


def in_cells(line: Line) -> tuple[str, str, str, str, str, str]:
    """Three amounts, the change, the replay's error and the verdict, for people."""
    recorded, now, then = (_amount(value, line.unit) for value in (line.recorded, line.now, line.then))
    return recorded, now, then, _percent(line.change), _percent(line.error), VERDICTS[line.verdict]


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "s":
        return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"
    return f"{value:.3f} {unit}".rstrip() if value < 100 else f"{value:.0f} {unit}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1%}"


def _of_all() -> Iterator[Metric]:
    """A report has the gaps of everyone under another key."""
    for metric in METRICS:
        yield metric._replace(path=("tbt_s", "all", *metric.path[1:])) if metric.path[0] == "tbt_s" else metric


def _line(group: str, metric: Metric, recorded: Figures, now: Figures, then: Figures) -> Line:
    known, before, after = (_figure(report, metric.path) for report in (recorded, now, then))
    known = known if metric.is_recorded else None
    change, error = _relative(after, before), _relative(before, known)
    return Line(
        group=group,
        metric=metric.name,
        unit=metric.unit,
        recorded=known,
        now=before,
        then=after,
        change=change,
        error=error,
        verdict=_verdict(change, error, more_is_better=metric.more_is_better),
    )


def _figure(report: Figures, path: tuple[str, ...]) -> float | None:
    found: Any = report
    for key in path:
        found = None if found is None else found.get(key)
    return None if found is None else float(found)


def _relative(value: float | None, base: float | None) -> float | None:
    return value / base - 1 if value is not None and base else None


def _verdict(change: float | None, error: float | None, *, more_is_better: bool) -> str:
    if change is None:
        return ""
    if change == 0:
        return "same"
    if error is not None and abs(change) <= abs(error):
        return "unsure"
    return "better" if (change > 0) == more_is_better else "worse"
