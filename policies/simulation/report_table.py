"""A report for people, as lines of text.

Knows the report's keys; owns how they are laid out on a terminal.
"""

from collections.abc import Mapping
from typing import Any

COLUMNS = ("p50", "p90", "p99", "mean")
ROWS = (
    ("ttft_s", "to first token"),
    ("ttft_prefill_s", "to end of prefill"),
    ("scheduling_delay_s", "to first step"),
    ("tpot_s", "per output token"),
    ("e2e_s", "to last token"),
)
MOST_TENANTS = 8


def table(figures: Mapping[str, Any]) -> str:
    """The report, in about thirty lines."""
    rate = figures["arrival_rate_rps"]
    arriving = "" if rate is None else f", {rate:.3f}/s arriving"
    lines = [
        f"policy {figures['policy']}: {_counts(figures['requests'])}{arriving}",
        _heading("seconds", COLUMNS),
        *(_row(label, figures[key]) for key, label in ROWS),
        *(_row(f"between tokens, {name}", figure) for name, figure in figures["tbt_s"].items()),
        _heading("within limits", ("ttft", "tbt", "goodput/s")),
    ]
    for name, figure in figures["slo"].items():
        goodput = figures["classes"][name]["goodput_rps"]
        lines.append(f"{'  ' + name:24}{_percent(figure['ttft'])}{_percent(figure['tbt'])}{_cell(goodput, 3)}")
    lines += [*_of_groups("tenant", figures["tenants"]), *_lengths(figures["prompt_lengths"])]
    tokens_per_s, goodput, steps = figures["tokens_per_s"], figures["goodput_rps"], figures["steps"]
    per_step, fill = _number(steps["mean_tokens"], 1), _share(steps["tile_fill"])
    lines += [
        f"output tokens per second {_number(tokens_per_s, 1)}, preemptions {figures['preemptions']}, goodput/s "
        + _number(goodput, 3),
        f"{steps['num']} steps of {per_step} tokens, tiles of 128 tokens filled to {fill}",
        "fairness: gap {max_gap:.0f} = {gap_ratio:.2f} of the bound, Jain {jain:.3f}".format_map(figures["fairness"]),
    ]
    if figures["prediction"] is not None:
        lines.append(_prediction(figures["prediction"]))
    if figures["prefix"]["hit_tokens"]:
        lines.append(
            "prefix cache: {hit_tokens} of {prompt_tokens} prompt tokens found = {hit_share:.1%}".format_map(
                figures["prefix"]
            )
        )
    lines.append(f"simulated {figures['simulated_s']:.1f} s in {figures['wall_s']:.1f} s")
    return "\n".join(lines)


def _prediction(figures: Mapping[str, Any]) -> str:
    held, mean = figures["coverage"], figures["interval_tokens"]
    return (
        f"predicted {mean['lower']:.0f} to {mean['upper']:.0f} output tokens on average, were "
        f"{figures['output_tokens']:.0f}; the lower bound held for {held['lower']:.1%}, upper {held['upper']:.1%}"
    )


def seeds_table(figures: Mapping[str, Any]) -> str:
    """Several seeds: the main figures of each, then their median, least and greatest."""
    columns = ("ttft p50", "ttft p99", "tbt p50", "tbt p99", "goodput/s", "tokens/s", "undone")
    rows = [(f"  seed {run['seed']}", run) for run in figures["runs"]]
    rows += [(f"  {name}", figures[name]) for name in ("median", "min", "max")]
    return "\n".join([_heading(f"policy {figures['policy']}", columns), *(_seed_row(*row) for row in rows)])


def _seed_row(label: str, run: Mapping[str, Any]) -> str:
    cells = [_in(run, "ttft_s", "p50"), _in(run, "ttft_s", "p99"), _in(run, "tbt_s", "all", "p50")]
    cells += [_in(run, "tbt_s", "all", "p99"), _in(run, "goodput_rps")]
    rate, unfinished = _in(run, "tokens_per_s"), _in(run, "requests", "unfinished")
    return f"{label:24}" + "".join(_cell(cell) for cell in cells) + _cell(rate, 1) + _cell(unfinished, 0)


def _in(figures: Mapping[str, Any], *keys: str) -> float | None:
    """A number, None where one of the runs had none."""
    value: Any = figures
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def capacity_table(figures: Mapping[str, Any]) -> str:
    """The largest rate of every seed."""
    lines = [
        f"policy {figures['policy']}: the largest rate that keeps {', '.join(figures['criteria'])}",
        f"with at most {figures['max_unfinished']:.1%} unfinished, to {figures['precision']:.1%}",
    ]
    for found in figures["capacity"]:
        least = min(probe["qps"] for probe in found["probes"])
        rate = (
            f"none: it fails at {least:.4f} requests/s too"
            if found["rps"] is None
            else f"{found['rps']:.4f} requests/s"
        )
        bound = "" if found["bounded"] else ", and no rate failed"
        lines.append(f"  {'seed ' + str(found['seed']):12}{rate}{bound} ({len(found['probes'])} runs)")
    if len(figures["capacity"]) > 1 and "median" in figures:
        lines += [f"  {name:12}{figures[name]['rps']:.4f} requests/s" for name in ("median", "min", "max")]
    return "\n".join(lines)


def _of_groups(kind: str, groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The tenants with the most requests; one alone is the whole run."""
    if len(groups) < 2:
        return []
    largest = sorted(groups.items(), key=lambda item: -item[1]["requests"]["arrived"])
    shown = largest[:MOST_TENANTS]
    title = kind if len(shown) == len(groups) else f"{kind} ({len(shown)} of {len(groups)})"
    return [
        _heading(title, ("requests", "ttft p50", "ttft p99", "output")),
        *(
            f"{'  ' + name[:22]:24}{group['requests']['arrived']:>10}{_cell(group['ttft_s']['p50'])}"
            f"{_cell(group['ttft_s']['p99'])}{group['output_tokens']:>10}"
            for name, group in shown
        ),
    ]


def _lengths(buckets: list[Mapping[str, Any]]) -> list[str]:
    if len(buckets) < 2:
        return []
    return [
        _heading("prompt tokens", ("requests", "ttft p50", "ttft p99", "finished")),
        *(
            f"{'  {from_tokens}-{to_tokens}'.format_map(bucket):24}{bucket['requests']['arrived']:>10}"
            f"{_cell(bucket['ttft_s']['p50'])}{_cell(bucket['ttft_s']['p99'])}{bucket['requests']['finished']:>10}"
            for bucket in buckets
        ),
    ]


def _counts(requests: Mapping[str, int]) -> str:
    shown = {name: number for name, number in requests.items() if number or name not in ("cancelled", "preempted")}
    return "requests " + ", ".join(f"{number} {name}" for name, number in shown.items())


def _heading(title: str, columns: tuple[str, ...]) -> str:
    return f"{title:24}" + "".join(f"{column:>10}" for column in columns)


def _row(label: str, figure: Mapping[str, float | None]) -> str:
    return f"{label:24}" + "".join(_cell(figure[column]) for column in COLUMNS)


def _cell(value: float | None, digits: int = 4) -> str:
    return f"{_number(value, digits):>10}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(share: float | None) -> str:
    return f"{_share(share):>10}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
