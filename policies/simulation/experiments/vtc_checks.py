"""How far figures may be from the published ones, and what must hold whatever they are.

Owns the tolerances of the fairness specification, 12.5. Knows figures, not runs; a check whose cases were not run is
not made.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import inf
from statistics import mean
from typing import Any

from policies.simulation.experiments.vtc_settings import REAL, Case, Cost

Figures = Mapping[str, Any]
Cases = Mapping[Case, Figures]
Check = dict[str, Any]
"""`what` is judged, what is `wanted`, what was `obtained`, and whether it `holds`."""

REAL_SHARE, RPM_5_SHARE = 0.15, 0.25
OVERLOAD_SHARE, PROFILED_SHARE, FCFS_SHARE = 0.20, 0.35, 0.10
THROUGHPUT_SHARE = 0.05
REFUSALS = 2
COSTS: tuple[Cost, ...] = ("weighted_tokens", "quadratic")
ORDER = ("fcfs", "lcf", "vtc", "vtc_predict", "vtc_oracle")
CLOSE = (
    *((Case("overload", "vtc_oracle"), 5.0), (Case("overload", "vtc_oracle", "quadratic"), 5.0)),
    *((Case("overload", "vtc_noisy"), 10.0), (Case("eight_tenants", "vtc_noisy"), 15.0)),
    (Case("eight_tenants", "vtc_oracle"), 15.0),
)
"""Averages too small for a relative tolerance, and how far from the published ones they may be."""


def checks(figures: Sequence[Figures]) -> list[Check]:
    """Every check that can be made of the cases of one seed."""
    cases = {Case(one["workload"], one["policy"], one["cost"]): one for one in figures}
    made = (*_real(cases), *_throughput(cases), *_synthetic(cases), *_waits(cases), *_shift(cases), *_bounds(cases))
    return [{"seed": figures[0]["seed"], **check} for check in made]


def _check(what: str, wanted: str, obtained: str, *, holds: bool) -> Check:
    return {"what": what, "wanted": wanted, "obtained": obtained, "holds": bool(holds)}


def _within(case: Case, one: Figures, key: str, share: float, unit: str) -> Check:
    """Relative to the published value."""
    published = one["published"][key]
    low, high = published * (1 - share), published * (1 + share)
    wanted = f"{low:.1f} to {high:.1f} {unit} (published {published:g})"
    return _check(f"{_name(case)}: {key}", wanted, f"{one[key]:.1f}", holds=low <= one[key] <= high)


def _has(one: Figures, key: str) -> bool:
    return one["published"] is not None and key in one["published"]


def _name(case: Case) -> str:
    return f"{case.workload}, {case.policy}" + (", profiled cost" if case.cost == "quadratic" else "")


def _chosen(cases: Cases, *keys: Case) -> list[Figures] | None:
    return [cases[key] for key in keys] if all(key in cases for key in keys) else None


# --- 1: the real trace -------------------------------------------------------------------------------------------


def _real(cases: Cases) -> Iterator[Check]:
    for cost in COSTS:
        chosen = _chosen(cases, *(Case(REAL, policy, cost) for policy in ORDER))
        if chosen is not None and chosen[0]["published"] is not None:
            averages = [one["avg_diff"] for one in chosen]
            falls = all(one > other for one, other in pairwise(averages[:-1])) and averages[-2] >= averages[-1]
            wanted = f"{' > '.join(ORDER[:-1])} >= {ORDER[-1]}"
            obtained = ", ".join(f"{average:.1f}" for average in averages)
            yield _check(f"order of avg_diff, real trace, {cost}", wanted, obtained, holds=falls)
    for case, one in cases.items():
        if case.workload == REAL and _has(one, "avg_diff"):
            yield _within(case, one, "avg_diff", RPM_5_SHARE if case.policy == "rpm_5" else REAL_SHARE, "cost/s")
        if case.workload == REAL and _has(one, "rejected"):
            published = one["published"]["rejected"]
            near = abs(one["rejected"] - published) <= REFUSALS
            wanted = f"{published} +- {REFUSALS}"
            yield _check(f"{_name(case)}: rejected", wanted, str(one["rejected"]), holds=near)
    chosen = _chosen(cases, Case(REAL, "fcfs"), Case(REAL, "vtc"))
    if chosen is not None:
        fcfs, vtc = chosen
        ratio = vtc["tokens_per_s"] / fcfs["tokens_per_s"]
        yield _check("real trace: throughput of vtc over fcfs", "0.99 or more", f"{ratio:.3f}", holds=ratio >= 0.99)
        ratio = vtc["max_diff"] / fcfs["max_diff"]
        yield _check("real trace: max_diff of vtc over fcfs", "0.85 or less", f"{ratio:.2f}", holds=ratio <= 0.85)


def _throughput(cases: Cases) -> Iterator[Check]:
    for case, one in cases.items():
        if _has(one, "tokens_per_s"):
            yield _within(case, one, "tokens_per_s", THROUGHPUT_SHARE, "tokens/s")


# --- 2 and 3: overload and eight tenants -------------------------------------------------------------------------


def _synthetic(cases: Cases) -> Iterator[Check]:
    for case, one in cases.items():
        if case.workload in {"overload", "overload_600s", "eight_tenants"} and _has(one, "avg_diff"):
            vtc_share = PROFILED_SHARE if case.cost == "quadratic" else OVERLOAD_SHARE
            share = {"vtc": vtc_share, "fcfs": FCFS_SHARE}.get(case.policy)
            if share is not None:
                yield _within(case, one, "avg_diff", share, "cost/s")
    for case, most in CLOSE:
        if case in cases and _has(cases[case], "avg_diff"):
            published, obtained = cases[case]["published"]["avg_diff"], cases[case]["avg_diff"]
            wanted = f"within {most:g} cost/s of {published:g}"
            near = abs(obtained - published) <= most
            yield _check(f"{_name(case)}: avg_diff", wanted, f"{obtained:.1f}", holds=near)
    chosen = _chosen(cases, Case("overload_600s", "fcfs"), Case("overload", "vtc"))
    if chosen is not None:
        fcfs, vtc = (one["avg_diff"] for one in chosen)
        obtained = f"{fcfs:.1f} and {vtc:.1f}"
        yield _check("overload: avg_diff", "fcfs at least 3 times vtc", obtained, holds=fcfs >= 3 * vtc)
    names = ("fcfs", "vtc", "vtc_noisy", "vtc_oracle")
    chosen = _chosen(cases, *(Case("eight_tenants", name) for name in names))
    if chosen is not None:
        averages = [one["avg_diff"] for one in chosen]
        falls = all(one > other for one, other in pairwise(averages))
        obtained = ", ".join(f"{average:.1f}" for average in averages)
        yield _check("order of avg_diff, eight tenants", " > ".join(names), obtained, holds=falls)


# --- 4: waits ----------------------------------------------------------------------------------------------------


def _waits(cases: Cases) -> Iterator[Check]:
    def wait(workload: str, policy: str, tenant: int) -> float | None:
        one = cases.get(Case(workload, policy))
        mean_s: float | None = None if one is None else one["tenants"][tenant]["mean_ttft_s"]
        return mean_s

    def judge(what: str, wanted: str, value: float | None, holds: Callable[[float], bool]) -> Iterator[Check]:
        if value is not None:
            yield _check(f"{what}: mean first-token latency", wanted, f"{value:.2f} s", holds=holds(value))

    for workload, tenant in (("proportional", 0), ("proportional", 1), ("on_off_less", 0)):
        what = f"{workload}, tenant {tenant + 1}"
        yield from judge(f"{what}, vtc", "below 8 s", wait(workload, "vtc", tenant), lambda value: value < 8.0)
        yield from judge(f"{what}, fcfs", "above 60 s", wait(workload, "fcfs", tenant), lambda value: value > 60.0)
    vtc, fcfs = wait("increase", "vtc", 0), wait("increase", "fcfs", 0)
    yield from judge("increase, tenant 1, vtc", "below 1.5 s", vtc, lambda value: value < 1.5)
    if vtc is not None:
        yield from judge("increase, tenant 1, fcfs", f"4 x {vtc:.2f} s or more", fcfs, lambda value: value >= 4 * vtc)
    weighted = cases.get(Case("weighted", "vtc"))
    if weighted is not None:
        means = [tenant["mean_ttft_s"] for tenant in weighted["tenants"]]
        spread = (max(means) - min(means)) / mean(means)
        wanted = "the four means within 2 %"
        yield _check("weighted, vtc: mean first-token latencies", wanted, f"{spread:.1%}", holds=spread <= 0.02)


def _shift(cases: Cases) -> Iterator[Check]:
    for policy, wanted, least, most in (("vtc", "within 5 %", 0.0, 0.05), ("lcf", "at least 15 % apart", 0.15, inf)):
        one = cases.get(Case("dist_shift", policy))
        if one is not None:
            got = one["service_per_s_300_to_600_s"]
            apart = max(got) / min(got) - 1
            what = f"dist_shift, {policy}: service from 300 to 600 s"
            yield _check(what, wanted, f"{apart:.1%}", holds=least <= apart <= most)


# --- 5: the theorem ----------------------------------------------------------------------------------------------


def _bounds(cases: Cases) -> Iterator[Check]:
    for case, one in cases.items():
        if case.policy == "vtc":
            worst = max(one["gap_ratio"], one["pair_ratio"])
            obtained = f"{one['gap_ratio']:.2f} of U, {one['pair_ratio']:.2f} of 2U"
            wanted = "gap at most U and pairs at most 2U, at every event"
            yield _check(f"{_name(case)}: bound", wanted, obtained, holds=worst <= 1.0)
