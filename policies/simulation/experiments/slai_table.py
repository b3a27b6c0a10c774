"""SLAI's evaluation for people: what was obtained beside what was published.

Knows the figures of slai.py; runs nothing.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

Figures = dict[str, Any]

BASE, BASE_SPF, OURS = "sarathi", "sarathi_spf", "slai"
PUBLISHED_MEDIAN, PUBLISHED_CAPACITY = -0.53, 0.26
"""Against Sarathi-Serve, from the paper's abstract; at which rate the median fell by that much is not published."""


def table(figures: Figures) -> str:
    """Set-up, runs, capacities, and published against obtained."""
    setup = figures["setup"]
    title = (
        f"{setup['trace']} on {setup['executor']} (modelled), KV-read efficiency {setup['executor_efficiency']:g}, "
        f"{setup['strict_share']:.0%} strict, {setup['duration_s']:g} s a run"
    )
    lines = [
        title,
        "",
        *_runs(figures["runs"]),
        "",
        f"capacity in nominal requests/s: {setup['criterion']}",
        *_capacities(figures["capacity"]),
    ]
    compared = list(_published(figures))
    return "\n".join([*lines, "", *compared] if compared else lines)


def _runs(runs: list[Figures]) -> Iterator[str]:
    yield (
        f"{'policy':18}{'qps':>6}{'seed':>6}{'arrived':>9}{'p50 ttft':>10}{'(token)':>9}{'p99 ttft':>10}{'>4096':>9}"
        f"{'p99 paid':>10}{'p99 free':>10}{'unfinished':>12}{'preempted':>11}"
    )
    for one in runs:
        yield (
            f"{one['policy']:18}{one['qps']:>6.2f}{one['seed']:>6}{one['arrived']:>9}"
            f"{_seconds(one['ttft_prefill_s']['p50'], 10)}{_seconds(one['ttft_s']['p50'], 9)}"
            f"{_seconds(one['ttft_prefill_s']['p99'], 10)}{_seconds(one['long_prompts']['ttft_prefill_s']['p99'], 9)}"
            f"{_seconds(one['tbt_s']['paid']['p99'], 10)}{_seconds(one['tbt_s']['free']['p99'], 10)}"
            f"{one['unfinished']:>12}{one['preemptions']:>11}"
        )
    yield "ttft: seconds to the end of the prompt; (token): to the first token; -: no sample, or infinite"


def _capacities(capacity: list[Figures]) -> Iterator[str]:
    yield f"{'policy':18}{'seed':>6}{'by ttft':>10}{'by first token':>16}{'over sarathi':>14}"
    base = {one["seed"]: one["rps"] for one in capacity if one["policy"] == BASE}
    for one in capacity:
        gain = _ratio(one["rps"], base.get(one["seed"]))
        yield (
            f"{one['policy']:18}{one['seed']:>6}{_seconds(one['rps'], 10)}{_seconds(one['rps_first_token'], 16)}"
            f"{_percent(gain):>14}"
        )


class Comparison(NamedTuple):
    """A claim of the paper, as it was published and as it came out."""

    what: str
    published: str
    obtained: str
    parts: str = ""
    """What of it is due to the order of prompts, and what to deferral."""


def comparisons(figures: Figures) -> Iterator[Comparison]:
    """The paper's claims, wherever both policies they speak of were run."""
    runs = {(one["policy"], one["seed"], one["qps"]): one for one in figures["runs"]}
    capacity = {(one["policy"], one["seed"]): one["rps"] for one in figures["capacity"]}
    seeds = [seed for name, seed in capacity if name == OURS and (BASE, seed) in capacity]
    gains = []
    for seed in seeds:
        gain = _ratio(capacity[OURS, seed], capacity[BASE, seed])
        gains += [] if gain is None else [gain]
        yield Comparison(f"capacity, seed {seed}", f"{PUBLISHED_CAPACITY:+.0%}", _percent(gain))
    if len(gains) > 1:
        mean = sum(gains) / len(gains)
        yield Comparison("capacity, mean of the seeds", f"{PUBLISHED_CAPACITY:+.0%}", _percent(mean))
    for one in figures["at_capacity"]:
        medians = one["median_ttft_prefill_s"]
        label = f"median TTFT at {one['capacity_of']}'s capacity, {one['qps']:.2f}/s, seed {one['seed']}"
        yield Comparison(label, "-", _percent(_ratio(medians[OURS], medians[BASE])))
    for (name, seed, qps), one in runs.items():
        other = runs.get((BASE, seed, qps))
        if name == OURS and other is not None:
            fall = _ratio(one["ttft_prefill_s"]["p50"], other["ttft_prefill_s"]["p50"])
            label = f"median TTFT at {qps:g}/s, seed {seed}"
            yield Comparison(label, f"{PUBLISHED_MEDIAN:+.0%}", _percent(fall), _parts(runs, seed, qps))


def _published(figures: Figures) -> Iterator[str]:
    rows = list(comparisons(figures))
    if rows:
        yield f"{'SLAI against Sarathi-Serve':56}{'published':>11}{'obtained':>11}"
    for row in rows:
        yield f"{row.what:56}{row.published:>11}{row.obtained:>11}   {row.parts}".rstrip()


def _parts(runs: dict[tuple[str, int, float], Figures], seed: int, qps: float) -> str:
    found = [runs.get((name, seed, qps)) for name in (BASE, BASE_SPF, OURS)]
    base, spf, ours = (None if one is None else one["ttft_prefill_s"]["p50"] for one in found)
    ordering, deferral = _ratio(spf, base), _ratio(ours, spf)
    if ordering is None or deferral is None:
        return ""
    return f"shortest first alone {ordering:+.0%}, deferral on top {deferral:+.0%}"


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base - 1


def _seconds(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1%}"
