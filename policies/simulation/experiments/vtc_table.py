"""VTC's evaluation for people: what was published beside what was obtained.

Knows the figures of vtc.py; runs nothing.
"""

from collections.abc import Iterator, Mapping
from typing import Any

Figures = Mapping[str, Any]

COLUMNS = (
    *(("max_diff", 8, 0), ("avg_diff", 9, 1), ("diff_var", 9, 0), ("tokens_per_s", 13, 0), ("rejected", 9, 0)),
    ("mean_ttft_s", 12, 1),
)
"""Name, width and digits."""
MOST_TENANTS = 8
NOTE = (
    "max_diff, avg_diff, diff_var: of the difference of a 60 s window, in cost/s; gap of U: the largest gap of\n"
    "counters over VTC's bound with the sizes really in flight; pairs of 2U: the largest difference of two tenants'\n"
    "services while both wait, over its bound; -: not published"
)


def table(figures: Figures) -> str:
    """Set-up, differences, waits and accumulated gaps, each published above obtained; then what must hold."""
    setup, cases = figures["setup"], figures["cases"]
    lines = [
        f"VTC's evaluation on {setup['executor']} (modelled), {setup['pool_tokens']} tokens of KV; {setup['trace']}"
    ]
    lines += [f"step time, {name}: {_constants(setup[key])}" for name, key in STEP_TIMES if setup[key] is not None]
    for seed in dict.fromkeys(one["seed"] for one in cases):
        mine = [one for one in cases if one["seed"] == seed]
        lines += ["", f"seed {seed}", *_differences(mine), "", *_waits(mine), "", *_gaps(mine)]
    return "\n".join([*lines, "", *_checks(figures["checks"])])


STEP_TIMES = (("as run", "step_time"), ("as fitted to the published profile", "step_time_fitted"))


def _constants(constants: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in constants.items())


def _differences(cases: list[Figures]) -> Iterator[str]:
    head = "".join(f"{name:>{width + 2}}" for name, width, _ in COLUMNS)
    yield f"{'workload':22}{'policy':13}{'cost':17}{'':10}{head}{'gap of U':>10}{'pairs of 2U':>13}"
    for one in cases:
        published = one["published"] or {}
        if any(name in published for name, *_ in COLUMNS):
            yield f"{label(one)}{'published':10}{_row(published)}"
            yield f"{'':52}{'obtained':10}{_row(one)}{_ratios(one)}"
        else:
            yield f"{label(one)}{'obtained':10}{_row(one)}{_ratios(one)}"
    yield NOTE


def label(one: Figures) -> str:
    """Which case it is, at a fixed width."""
    return f"{one['workload']:22}{one['policy']:13}{one['cost']:17}"


def _row(figures: Figures) -> str:
    return "".join(_number(figures.get(name), width + 2, digits) for name, width, digits in COLUMNS)


def _ratios(one: Figures) -> str:
    return _number(one["gap_ratio"], 10, 2) + _number(one["pair_ratio"], 13, 2)


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"


def _waits(cases: list[Figures]) -> Iterator[str]:
    yield "seconds to the first token, mean (largest) by tenant"
    for one in cases:
        if len(one["tenants"]) > MOST_TENANTS or one["cost"] != "weighted_tokens":
            continue
        published = (one["published"] or {}).get("tenant_ttft_s")
        if published:
            yield f"{label(one)}{'published':10}{'  '.join(_wait(*pair) for pair in published)}"
        obtained = "  ".join(_wait(tenant["mean_ttft_s"], tenant["max_ttft_s"]) for tenant in one["tenants"])
        yield f"{'' if published else label(one):52}{'obtained':10}{obtained}"


def _wait(mean_s: float | None, largest_s: float | None) -> str:
    if mean_s is None:
        return "-"
    return f"{mean_s:.1f}" + ("" if largest_s is None else f" ({largest_s:.1f})")


def _gaps(cases: list[Figures]) -> Iterator[str]:
    yield "largest accumulated gap between two tenants' services; service per second from 300 s to 600 s"
    for one in cases:
        if len(one["tenants"]) > MOST_TENANTS or one["cost"] != "weighted_tokens":
            continue
        published = one["published"] or {}
        gaps = [one["max_accumulated_gap"][key] for key in ("warm_up_30_s", "warm_up_0_s")]
        got = " / ".join(f"{value:.0f}" for value in one["service_per_s_300_to_600_s"])
        line = f"{label(one)}{gaps[0]:>10.0f} (from 0 s: {gaps[1]:.0f}){'':3}{got}"
        if "accumulated_gap" in published:
            line += f"   published gap {published['accumulated_gap']:.0f}"
        if "phase_2_service_per_s" in published:
            line += f"   published {' / '.join(f'{value:.0f}' for value in published['phase_2_service_per_s'])}"
        yield line


def _checks(checks: list[Figures]) -> Iterator[str]:
    failed = [check for check in checks if not check["holds"]]
    yield f"{len(checks) - len(failed)} of {len(checks)} checks hold" + (":" if failed else "")
    for check in failed:
        yield f"  seed {check['seed']}, {check['what']}: wanted {check['wanted']}, obtained {check['obtained']}"
