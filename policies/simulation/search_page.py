"""Pages of what several runs came to: the same run under several seeds, and the search for a capacity.

Owns which plots say it. Knows the figures of services/replay_runs.py; how a plot looks is report_html.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from policies.simulation.report_html import Chart, Mark, Series, Table, page

Figures = Mapping[str, Any]

Time = tuple[str, tuple[str, ...]]
"""Name of a figure, and where it is in a report."""

TIMES: tuple[Time, ...] = (
    ("TTFT p50", ("ttft_s", "p50")),
    ("TTFT p99", ("ttft_s", "p99")),
    ("TBT p50", ("tbt_s", "all", "p50")),
    ("TBT p99", ("tbt_s", "all", "p99")),
    ("E2E p50", ("e2e_s", "p50")),
)


def seeds_page(figures: Figures, setting: str) -> str:
    """Several seeds beside each other."""
    runs = figures["runs"]
    names = [f"seed {run['seed']}" for run in runs]
    rows = [_row(name, run) for name, run in zip(names, runs, strict=True)]
    rows += [_row(name, figures[name]) for name in ("median", "min", "max")]
    columns = ("run", *(name for name, _ in TIMES), "goodput/s", "unfinished")
    charts = [
        _by_seed("Time to first token", names, runs, TIMES[:2]),
        _by_seed("Time between tokens", names, runs, TIMES[2:4]),
    ]
    return page(
        f"Replays of {figures['policy']}", setting, [Table("Every seed", "Times in seconds.", columns, rows), *charts]
    )


def capacity_page(figures: Figures, setting: str) -> str:
    """Every probe of a search, and the criteria over the rate."""
    searches = figures["capacity"]
    found = [search["rps"] for search in searches if search["rps"] is not None]
    rows = [
        (
            f"seed {search['seed']}",
            f"{probe['qps']:.4f}",
            "kept" if probe["met"] else "not kept",
            *(_text(probe["criteria"][criterion]) for criterion in figures["criteria"]),
            f"{probe['unfinished_share']:.1%}",
            _text(probe["given_up_at_s"], ".0f"),
        )
        for search in searches
        for probe in sorted(search["probes"], key=lambda probe: float(probe["qps"]))
    ]
    columns = ("run", "requests/s", "verdict", *figures["criteria"], "unfinished", "given up at s")
    charts = [_criterion(criterion, searches, found) for criterion in figures["criteria"]]
    rates = " to ".join(dict.fromkeys(f"{rate:.4f}" for rate in (min(found), max(found)))) if found else "no"
    note = (
        f"Kept up to {rates} requests/s, with at most {figures['max_unfinished']:.1%} of the requests without an end."
    )
    return page(f"Capacity under {figures['policy']}", setting, [*charts, Table("Every probe", note, columns, rows)])


def _by_seed(title: str, names: Sequence[str], runs: Sequence[Figures], times: Sequence[Time]) -> Chart:
    series = [Series(name, names, [_at(run, path) for run in runs]) for name, path in times]
    return Chart(title, "Median and 99th percentile of each run.", "", "seconds", series, "bars")


def _criterion(criterion: str, searches: Sequence[Figures], found: Sequence[float]) -> Chart:
    """One criterion's figure over the rate; probes that were given up have none to compare."""
    name, _, limit = criterion.partition("<")
    series = []
    for search in searches:
        to_the_end = [probe for probe in search["probes"] if probe["given_up_at_s"] is None]
        ended = sorted(to_the_end, key=lambda probe: float(probe["qps"]))
        rates = [probe["qps"] for probe in ended]
        series.append(Series(f"seed {search['seed']}", rates, [probe["criteria"][criterion] for probe in ended]))
    marks = [Mark(f"limit {limit.strip()}", float(limit), "y"), *(Mark("", rate) for rate in found)]
    note = "Of the runs that went to their end; a dotted line stands at each capacity."
    return Chart(name.strip(), note, "requests per second", "seconds", series, "points", marks=marks)


def _row(name: str, run: Figures) -> tuple[str, ...]:
    return (
        name,
        *(_text(_at(run, path)) for _, path in TIMES),
        _text(_at(run, ("goodput_rps",)), ".3f"),
        _text(_at(run, ("requests", "unfinished")), ".0f"),
    )


def _at(figures: Figures, path: Sequence[str]) -> float | None:
    """A number; None where one of the runs had none."""
    value: Any = figures
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def _text(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else format(value, form)
