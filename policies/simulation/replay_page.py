"""The page of one replayed run.

Owns which plots say what happened. Knows the report's figures, the samples behind them and the timeline; how a plot
looks is report_html.py.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from policies.simulation.outcome import Outcome
from policies.simulation.report import Figures
from policies.simulation.report_html import Chart, Mark, Series, Table, page
from policies.simulation.samples import GAP_METRIC, Floats, Samples
from policies.simulation.timeline import Point, Timeline

NUM_QUANTILES = 401
"""Points of a distribution's curve."""
MOST_TENANTS = 8
SHORTEST_S = 1e-4
"""Where the logarithmic axes of times begin."""


def replay_page(figures: Figures, outcome: Outcome, timeline: Timeline, setting: str) -> str:
    """The page of a run; `setting` says on what it ran.

    Args:
        figures: the run's report.
        outcome: the run.
        timeline: made before it ran.
        setting: one sentence.
    """
    samples = Samples(outcome)
    classes = [(name, samples.slo_class == number) for number, name in enumerate(samples.classes)]
    used = [(name, requests) for name, requests in classes if requests.any()]
    limits = {name: (ttft_s, tbt_s) for name, ttft_s, tbt_s in outcome.classes}
    parts: list[Chart | Table] = [
        _summary(figures),
        Chart(
            "Time to first token",
            "Share of the requests that had their first token by then; those that never had one hold a curve down.",
            "seconds since arrival",
            "share of requests",
            [distribution(name, samples.of("ttft_s", requests), int(requests.sum())) for name, requests in used],
            "steps",
            log_x=True,
            marks=[Mark(f"{name} limit", limits[name][0]) for name, _ in used],
        ),
        Chart(
            "Time between tokens",
            "Share of the gaps between successive tokens of a request that were no longer.",
            "seconds",
            "share of gaps",
            [
                distribution(name, gaps, len(gaps))
                for name, requests in used
                if len(gaps := samples.of(GAP_METRIC, requests))
            ],
            "steps",
            log_x=True,
            marks=[Mark(f"{name} limit", limits[name][1]) for name, _ in used],
        ),
        *_over_time(timeline),
        _by_length(figures["prompt_lengths"]),
        _service(timeline, samples),
    ]
    return page(f"Replay of {outcome.policy}", setting, parts)


def _summary(figures: Figures) -> Table:
    """The figures of everybody and of each class."""
    columns = ("requests", "finished", "TTFT p50", "TTFT p99", "TBT p50", "TBT p99", "E2E p50", "in time", "goodput/s")
    requests = figures["requests"]
    rows = [_summary_row("all", figures, figures["tbt_s"]["all"], None)]
    rows += [
        _summary_row(name, group, group["tbt_s"], figures["slo"][name]["ttft"])
        for name, group in figures["classes"].items()
    ]
    ended_otherwise = ", ".join(
        f"{requests[name]} {name}" for name in ("unfinished", "refused", "cancelled", "preempted") if requests[name]
    )
    prefix, steps = figures["prefix"], figures["steps"]
    notes = [
        f"{figures['simulated_s']:.0f} s of virtual time, {steps['num']} steps",
        *([ended_otherwise] if ended_otherwise else []),
        *(
            [f"{prefix['hit_share']:.1%} of the prompt tokens found in the prefix cache"]
            if prefix["hit_tokens"]
            else []
        ),
    ]
    return Table("What it came to", "; ".join(notes) + ". Times in seconds.", ("class", *columns), rows)


def _summary_row(name: str, figures: Figures, gaps: Figures, in_time: float | None) -> tuple[str, ...]:
    times = (*(figures["ttft_s"][key] for key in ("p50", "p99")), gaps["p50"], gaps["p99"], figures["e2e_s"]["p50"])
    counts = (figures["requests"]["arrived"], figures["requests"]["finished"])
    return (
        name,
        *(str(count) for count in counts),
        *(_text(value, ".3f") for value in times),
        _text(in_time, ".1%"),
        _text(figures["goodput_rps"], ".3f"),
    )


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def distribution(name: str, ascending: Floats, total: int) -> Series:
    """How many of `total` were no longer; evenly spaced quantiles stand for all samples."""
    rows = np.unique(np.linspace(0, len(ascending) - 1, min(NUM_QUANTILES, len(ascending))).astype(np.int64))
    seconds = np.maximum(ascending[rows], SHORTEST_S)
    return Series(name, seconds.tolist(), ((rows + 1) / total).tolist())


def _over_time(timeline: Timeline) -> Iterator[Chart]:
    points = timeline.points
    at_s = [point.ended_at_s for point in points]

    def chart(title: str, note: str, unit: str, series: Sequence[tuple[str, Sequence[float]]], **options: Any) -> Chart:
        return Chart(
            title, note, "virtual seconds", unit, [Series(name, at_s, values) for name, values in series], **options
        )

    yield chart(
        "Queues",
        "Requests that admission holds back, sequences without KV blocks, and sequences with some.",
        "requests",
        [
            ("held by admission", [point.num_queued for point in points]),
            ("waiting", [point.num_waiting for point in points]),
            ("running", [point.num_running for point in points]),
        ],
    )
    yield chart(
        "KV memory",
        "Share of the KV blocks in use.",
        "share of blocks",
        [("in use", [point.kv_use for point in points])],
        marks=[Mark("full", 1.0, "y")],
    )
    yield chart(
        "What a step holds",
        "Mean tokens of a step.",
        "tokens",
        [
            ("of prompts", [point.prefill_tokens / point.num_steps for point in points]),
            ("decodes", [point.decode_tokens / point.num_steps for point in points]),
        ],
        stacked=True,
    )
    yield chart(
        "How long a step takes",
        "Mean over the stretch.",
        "seconds",
        [("step time", [point.step_time_s / point.num_steps for point in points])],
    )


def _by_length(buckets: Sequence[Figures]) -> Chart:
    names = [f"{bucket['from_tokens']}-{bucket['to_tokens']}" for bucket in buckets]
    return Chart(
        "Time to first token by prompt length",
        "Whether long prompts pay for short ones, or the other way round.",
        "prompt tokens",
        "seconds",
        [Series(key, names, [bucket["ttft_s"][key] for bucket in buckets]) for key in ("p50", "p99")],
        "bars",
    )


def _service(timeline: Timeline, samples: Samples) -> Chart:
    """Rates of the tenants with the most tokens."""
    points = timeline.points
    last = points[-1].service if points else []
    largest = sorted(range(len(last)), key=lambda tenant: -last[tenant])[:MOST_TENANTS]
    note = "Prompt and output tokens per second of each tenant."
    if len(largest) < len(samples.tenants):
        note = f"Prompt and output tokens per second of the {len(largest)} tenants with the most."
    stretches = list(pairwise(points[:: max(1, len(points) // 128)]))
    at_s = [later.ended_at_s for _, later in stretches]
    return Chart(
        "Service by tenant",
        note,
        "virtual seconds",
        "tokens per second",
        [Series(timeline.tenants[t], at_s, [_rate(*stretch, t) for stretch in stretches]) for t in largest],
    )


def _rate(earlier: Point, later: Point, tenant: int) -> float:
    return (later.service[tenant] - earlier.service[tenant]) / (later.ended_at_s - earlier.ended_at_s)
