"""SLAI's evaluation as a page of plots: the paper's figures, with our policies in them.

Knows the figures of slai.py; runs nothing.
"""

from collections.abc import Callable
from statistics import mean
from typing import Any

from policies.simulation.experiments.slai_table import comparisons
from policies.simulation.report_html import Chart, Mark, Series, Table, page

Figures = dict[str, Any]


def html(figures: Figures) -> str:
    """The whole page."""
    setup, runs = figures["setup"], figures["runs"]
    introduction = (
        f"{setup['trace']} on {setup['executor']} (modelled), KV-read efficiency {setup['executor_efficiency']:g}, "
        f"{setup['strict_share']:.0%} strict, {setup['duration_s']:g} s a run. Capacity: {setup['criterion']}."
    )
    seed = runs[0]["seed"]
    shown = [one for one in runs if one["seed"] == seed]
    half_second, paid, free = Mark("criterion", 0.5, "y"), Mark("limit", 0.1, "y"), Mark("limit", 0.5, "y")
    parts: list[Chart | Table] = [
        _published(figures),
        _capacity(figures["capacity"]),
        _by_rate("Median TTFT, to the end of the prompt", shown, lambda one: one["ttft_prefill_s"]["p50"], half_second),
        _by_rate("Median TTFT, to the first token", shown, lambda one: one["ttft_s"]["p50"], half_second),
        _by_rate("P99 TTFT, to the end of the prompt", shown, lambda one: one["ttft_prefill_s"]["p99"]),
        _by_rate("P99 TBT of the paid", shown, lambda one: one["tbt_s"]["paid"]["p99"], paid),
        _by_rate("P99 TBT of the free", shown, lambda one: one["tbt_s"]["free"]["p99"], free),
        _by_length(shown),
    ]
    return page("SLAI's evaluation", introduction, parts)


def _published(figures: Figures) -> Table:
    rows = list(comparisons(figures))
    return Table(
        "SLAI against Sarathi-Serve",
        "Published on the device itself; obtained with a model of it.",
        ("", "published", "obtained", "of which"),
        rows,
    )


def _capacity(capacity: list[Figures]) -> Chart:
    names = list(dict.fromkeys(one["policy"] for one in capacity))
    series = []
    for key, label in (("rps", "by the end of the prompt"), ("rps_first_token", "by the first token")):
        means = [mean([one[key] or 0.0 for one in capacity if one["policy"] == name]) for name in names]
        series.append(Series(label, names, means))
    return Chart(
        "Capacity", "Mean of the seeds; nominal requests per second.", "", "requests/s", series, "bars", wide=True
    )


def _by_rate(title: str, runs: list[Figures], value: Callable[[Figures], float | None], *marks: Mark) -> Chart:
    names = list(dict.fromkeys(one["policy"] for one in runs))
    series = []
    for name in names:
        own = [one for one in runs if one["policy"] == name]
        series.append(Series(name, [one["qps"] for one in own], [value(one) for one in own]))
    note = f"Seed {runs[0]['seed']}. A line ends where the value is infinite."
    return Chart(title, note, "nominal requests/s", "seconds", series, "points", marks=marks)


def _by_length(runs: list[Figures]) -> Chart:
    """At the largest rate that every policy was run at."""
    qps = max(one["qps"] for one in runs)
    series = []
    for one in runs:
        if one["qps"] == qps:
            buckets = one["by_prompt_tokens"]
            means = [bucket["ttft_prefill_s"]["mean"] for bucket in buckets]
            series.append(Series(one["policy"], [bucket["up_to"] for bucket in buckets], means))
    note = f"Mean over those whose prompt was computed, at {qps:g} requests/s, by prompt length up to."
    return Chart("TTFT by prompt length", note, "prompt tokens", "seconds", series, "points")
