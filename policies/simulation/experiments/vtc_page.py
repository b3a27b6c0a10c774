"""VTC's evaluation as a page of plots: service and differences over time.

Knows the figures of vtc.py; runs nothing.
"""

from collections.abc import Mapping
from typing import Any

from policies.simulation.experiments.vtc_table import COLUMNS, MOST_TENANTS
from policies.simulation.report_html import Chart, Series, Table, page

Figures = Mapping[str, Any]


def html(figures: Figures) -> str:
    """The whole page: published beside obtained, what must hold, and a workload after the other."""
    setup, cases = figures["setup"], figures["cases"]
    introduction = (
        f"{setup['executor']} (modelled), {setup['pool_tokens']} tokens of KV; real: {setup['trace']}. Service is cost "
        "delivered in windows of 60 s; the difference of a window sums how far each tenant is behind the one that got "
        "most, or off what it asked for where that is nearer."
    )
    shown = [one for one in cases if one["seed"] == cases[0]["seed"]]
    parts: list[Chart | Table] = [_table(cases), _checks(figures["checks"])]
    for workload, cost in dict.fromkeys((one["workload"], one["cost"]) for one in shown):
        mine = [one for one in shown if (one["workload"], one["cost"]) == (workload, cost)]
        parts.append(_differences(workload, cost, mine))
        if cost == "weighted_tokens" and len(mine[0]["tenants"]) <= MOST_TENANTS:
            parts += [_service(one) for one in mine]
    return page("VTC's evaluation", introduction, parts)


def _table(cases: list[Figures]) -> Table:
    rows = []
    for one in cases:
        published = one["published"] or {}
        cells = [f"{_text(published.get(name), digits)} / {_text(one[name], digits)}" for name, _, digits in COLUMNS]
        ratios = (_text(one["gap_ratio"], 2), _text(one["pair_ratio"], 2))
        rows.append((f"{one['workload']}: {one['policy']}", one["cost"], str(one["seed"]), *cells, *ratios))
    note = "Published / obtained. Differences in cost per second; the last two over VTC's bounds."
    columns = ("", "cost", "seed", *(name for name, *_ in COLUMNS), "gap of U", "pairs of 2U")
    return Table("Published and obtained", note, columns, rows)


def _checks(checks: list[Figures]) -> Table:
    rows = [
        (check["what"], str(check["seed"]), check["wanted"], check["obtained"], "yes" if check["holds"] else "no")
        for check in checks
    ]
    num_held = sum(check["holds"] for check in checks)
    return Table(
        "What must hold", f"{num_held} of {len(checks)} do.", ("", "seed", "wanted", "obtained", "holds"), rows
    )


def _differences(workload: str, cost: str, cases: list[Figures]) -> Chart:
    series = [
        Series(
            one["policy"],
            [sample["from_s"] for sample in one["samples"]],
            [sample["difference"] for sample in one["samples"]],
        )
        for one in cases
    ]
    return Chart(f"{workload}: differences", f"By {cost}.", "window begins, s", "cost/s", series, "points", wide=True)


def _service(one: Figures) -> Chart:
    begins = [sample["from_s"] for sample in one["samples"]]
    series = [
        Series(f"tenant {tenant['tenant']}", begins, [sample["service_per_s"][number] for sample in one["samples"]])
        for number, tenant in enumerate(one["tenants"])
    ]
    return Chart(
        f"{one['workload']}: service under {one['policy']}", "", "window begins, s", "cost/s", series, "points"
    )


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
