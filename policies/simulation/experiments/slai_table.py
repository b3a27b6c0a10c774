"""SLAI's evaluation for people: what was obtained beside what was published.

Knows the figures of slai.py; runs nothing.
"""

from collections.abc import Iterator
from typing import Any

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
    yield "ttft: seconds to the end of the prompt; (token): to the first token; -: none, or more than half never came"


def _capacities(capacity: list[Figures]) -> Iterator[str]:
    yield f"{'policy':18}{'seed':>6}{'by ttft':>10}{'by first token':>16}{'over sarathi':>14}"
    base = {one["seed"]: one["rps"] for one in capacity if one["policy"] == BASE}
    for one in capacity:
        gain = _ratio(one["rps"], base.get(one["seed"]))
        yield (
            f"{one['policy']:18}{one['seed']:>6}{_seconds(one['rps'], 10)}{_seconds(one['rps_first_token'], 16)}"
            f"{_percent(gain, 14)}"
        )


def _published(figures: Figures) -> Iterator[str]:
    runs = {(one["policy"], one["seed"], one["qps"]): one for one in figures["runs"]}
    capacity = {(one["policy"], one["seed"]): one["rps"] for one in figures["capacity"]}
    seeds = sorted(
        {seed for name, seed in capacity if name == BASE} & {seed for name, seed in capacity if name == OURS}
    )
    if not seeds:
        return
    yield f"{'SLAI against Sarathi-Serve':40}{'published':>11}{'obtained':>11}"
    for seed in seeds:
        gain = _ratio(capacity[OURS, seed], capacity[BASE, seed])
        yield f"{f'capacity, seed {seed}':40}{PUBLISHED_CAPACITY:>+11.0%}{_percent(gain, 11)}"
    gains = [gain for seed in seeds if (gain := _ratio(capacity[OURS, seed], capacity[BASE, seed])) is not None]
    if len(gains) > 1:
        yield f"{'capacity, mean of the seeds':40}{PUBLISHED_CAPACITY:>+11.0%}{sum(gains) / len(gains):>+11.0%}"
    for (name, seed, qps), one in runs.items():
        other = runs.get((BASE, seed, qps))
        if name != OURS or other is None:
            continue
        fall = _ratio(one["ttft_prefill_s"]["p50"], other["ttft_prefill_s"]["p50"])
        label = f"median TTFT at {qps:g}/s, seed {seed}"
        ordering, deferral = _parts(runs, seed, qps)
        yield f"{label:40}{PUBLISHED_MEDIAN:>+11.0%}{_percent(fall, 11)}{ordering}{deferral}"


def _parts(runs: dict[tuple[str, int, float], Figures], seed: int, qps: float) -> tuple[str, str]:
    """How much of a fall is due to ordering by length alone, and how much to deferral after it."""
    found = [runs.get((name, seed, qps)) for name in (BASE, BASE_SPF, OURS)]
    base, spf, ours = (None if one is None else one["ttft_prefill_s"]["p50"] for one in found)
    ordering, deferral = _ratio(spf, base), _ratio(ours, spf)
    if ordering is None or deferral is None:
        return "", ""
    return f"   shortest first alone {ordering:+.0%}", f", deferral on top {deferral:+.0%}"


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base - 1


def _seconds(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.3f}"


def _percent(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>+{width}.1%}"
