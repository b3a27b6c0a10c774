"""The A_min experiment as a page of plots: each setting's policies beside hindsight.

Knows the figures of amin.py; runs nothing.
"""

from statistics import mean
from typing import Any

from policies.simulation.report_html import Chart, Mark, Series, Table, page

Figures = dict[str, Any]


def html(figures: Figures) -> str:
    """The whole page."""
    seeds = ", ".join(str(seed) for seed in figures["seeds"])
    introduction = (
        "One executor, a step a second, one token a sequence and step, memory counted in tokens. Mean latency as a "
        f"multiple of what knowing every length would give; seeds {seeds}."
    )
    parts: list[Chart | Table] = [_latency(setting) for setting in figures["settings"]]
    return page("A_min and its kin", introduction, [*parts, _costs(figures["settings"])])


def _latency(setting: Figures) -> Chart:
    runs = [run for run in setting["runs"] if run["policy"] != "hindsight"]
    names = list(dict.fromkeys(run["policy"] for run in runs))
    bars = []
    for label, pick in (("least of the seeds", min), ("mean", mean), ("most", max)):
        values = [pick([run["of_hindsight"] for run in runs if run["policy"] == name]) for name in names]
        bars.append(Series(label, names, values))
    load = "all at once" if setting["load"] is None else f"load {setting['load']:g}"
    note = f"{setting['num_requests']} requests, {setting['kv_tokens']} tokens of KV, {load}."
    return Chart(setting["setting"], note, "", "of hindsight", bars, "bars", marks=(Mark("hindsight", 1.0, "y"),))


def _costs(settings: list[Figures]) -> Table:
    keys = ("preemptions", "recomputed_tokens", "p99_latency_s", "mean_latency_of_longest_s")
    rows = []
    for setting in settings:
        for name in dict.fromkeys(run["policy"] for run in setting["runs"]):
            mine = [run for run in setting["runs"] if run["policy"] == name]
            seen, *_ = (run["seen"] for run in mine)
            rows.append(
                (f"{setting['setting']}: {name}", seen, *(f"{mean(run[key] for run in mine):.0f}" for key in keys))
            )
    columns = ("setting: policy", "seen before", "preempted", "recomputed tokens", "p99 latency", "longest 5 %")
    return Table("What it costs", "Mean of the seeds; latencies in steps.", columns, rows)
