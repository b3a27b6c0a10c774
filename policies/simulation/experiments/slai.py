"""SLAI's evaluation (arXiv 2508.01002; scheduling specification, section 8): Mistral-7B on an RTX 6000 Ada, chat
lengths, two classes, a grid of rates, and the largest rate that meets the paper's criterion.

Owns the set-up, the criterion and the published headline. The step times are a model of that device, not the device.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from math import ceil, inf, log
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from policies.document.loading import load_policy
from policies.scheduling.core import FirstToken
from policies.simulation.capacity import find_capacity
from policies.simulation.driver import Simulation
from policies.simulation.executor_model import DEVICES
from policies.simulation.experiments import ExperimentError, Options, Progress, read_text, spread
from policies.simulation.experiments.slai_table import BASE, OURS, table
from policies.simulation.outcome import Outcome, Served
from policies.simulation.sharegpt import sharegpt_lengths
from policies.simulation.workload import PAID_SHARE, TraceError, read_lengths, with_arrivals

POLICIES = (
    *("orca", "vllm", "sarathi", "sarathi_spf"),
    *("slai_fcfs_fixed", "slai_spf_fixed", "slai", "slai_priority"),
    "fairlead",
)
OWN: dict[str, bytes] = {}
TRACE = "openchat_sharegpt4_lengths.csv"
SYNTHETIC = "synthetic lengths of the same statistics"
SYNTHETIC_SEED = 42
QPS = tuple(round(0.2 * step, 1) for step in range(1, 11))
SEEDS = (42,)
DURATION_S = 2100.0
EFFICIENCY = 0.8
DEVICE = "rtx6000ada-mistral7b"

MEDIAN_TTFT_S = 0.5
TBT_S = {"paid": 0.1, "free": 0.5}
UNFINISHED_SHARE = 0.04
PRECISION = 0.01
CRITERION = (
    f"median TTFT < {MEDIAN_TTFT_S:g} s, P99 TBT < {TBT_S['paid']:g} s paid and < {TBT_S['free']:g} s free; whoever "
    f"was not served so far counts as infinite TTFT, and at most {UNFINISHED_SHARE:.0%} of the arrivals are unfinished"
)
FIRST_TOKEN: FirstToken = "next_decode"  # noqa: S105  a convention of the paper's figures, not a secret
TTFTS = ("ttft_prefill_s", "ttft_s")
SHARES = (("p50", 0.50), ("p99", 0.99))
BUCKET_TOKENS = 512
LONG_TOKENS = 4096
JUDGED = "p50_unfinished_infinite"
"""The median that a capacity is judged by: of every request that has not ended when the run does, the TTFT is infinite
there, even where its first token came. Beside it, `p50` takes the waits that are over as they were."""

Figures = dict[str, Any]
__all__ = ["POLICIES", "run", "table"]


class Point(Struct, frozen=True):
    """One run: a policy at a rate, under one seed."""

    policy: str
    document: bytes
    lengths: list[tuple[int, int]]
    qps: float
    seed: int
    efficiency: float
    strict_share: float
    duration_s: float


class Search(Struct, frozen=True):
    """The search for the capacity of a policy under one seed; `runs`: what was run already."""

    point: Point
    runs: list[Figures]


def run(options: Options, progress: Progress) -> Figures:
    """Every policy at every rate and seed, then the capacity of every policy and seed, then the two of the paper's
    headline at each other's capacity.

    Raises:
        ExperimentError: the data cannot be used, or a policy lacks the paper's classes.
    """
    lengths, trace = _lengths(options)
    for name, document in options.policies.items():
        _check_classes(name, document)
    grid, num_rates = points(options, lengths), len(options.qps or QPS)
    pairs = 2 * len(options.seeds or SEEDS) if {BASE, OURS} <= set(options.policies) else 0
    total, done = len(grid) + len(grid) // num_rates + pairs, 0

    def on_done() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    progress(0, total)
    # The longest first, so that the last process to end does not start with a long one.
    by_load = sorted(grid, key=lambda point: -point.qps)
    runs = spread(simulate, by_load, processes=options.processes, on_done=on_done)
    asked = {(point.policy, point.seed, point.qps): number for number, point in enumerate(grid)}
    runs.sort(key=lambda figures: asked[figures["policy"], figures["seed"], figures["qps"]])
    searches = [
        Search(point, [r for r in runs if (r["policy"], r["seed"]) == (point.policy, point.seed)])
        for point in grid[::num_rates]
    ]
    capacity = spread(search, searches, processes=options.processes, on_done=on_done)
    guests = list(_guests(grid, capacity)) if pairs else []
    visits = spread(simulate, guests, processes=options.processes, on_done=on_done)
    progress(total, total)
    first = grid[0]
    return {
        "runs": runs,
        "capacity": capacity,
        "at_capacity": [_visit(one, capacity) for one in visits],
        "setup": {
            "trace": trace,
            "executor": DEVICE,
            "executor_efficiency": first.efficiency,
            "first_token": FIRST_TOKEN,
            "steps_in_flight": 1,
            "strict_share": first.strict_share,
            "duration_s": first.duration_s,
            "criterion": CRITERION,
        },
    }


def _guests(grid: list[Point], capacity: list[Figures]) -> Iterator[Point]:
    """Each of the headline's two policies at the capacity of the other."""
    for one in capacity:
        other = {BASE: OURS, OURS: BASE}.get(one["policy"])
        if other is not None and one["rps"] is not None:
            own = next(point for point in grid if (point.policy, point.seed) == (other, one["seed"]))
            yield replace(own, qps=one["rps"])


def _visit(figures: Figures, capacity: list[Figures]) -> Figures:
    """The medians of both at one's capacity."""
    name, seed, qps = figures["policy"], figures["seed"], figures["qps"]
    host = next(one for one in capacity if (one["policy"] != name, one["seed"], one["rps"]) == (True, seed, qps))
    probe = next(probe for probe in host["probes"] if probe["qps"] == qps)
    medians = {host["policy"]: probe["ttft_prefill_s"], name: figures["ttft_prefill_s"]["p50"]}
    return {"capacity_of": host["policy"], "seed": seed, "qps": qps, "median_ttft_prefill_s": medians}


def points(options: Options, lengths: list[tuple[int, int]]) -> list[Point]:
    """The grid of runs: policies, seeds, rates."""
    return [
        Point(
            policy=name,
            document=document,
            lengths=lengths,
            qps=qps,
            seed=seed,
            efficiency=options.executor_efficiency or EFFICIENCY,
            strict_share=PAID_SHARE if options.strict_share is None else options.strict_share,
            duration_s=options.duration_s or DURATION_S,
        )
        for (name, document), seed, qps in product(options.policies.items(), options.seeds or SEEDS, options.qps or QPS)
    ]


def simulate(point: Point) -> Figures:
    """One run, as figures."""
    requests = with_arrivals(point.lengths, qps=point.qps, seed=point.seed, paid_share=point.strict_share)
    outcome = Simulation(
        point.document,
        requests,
        DEVICES[DEVICE](point.efficiency),
        first_token=FIRST_TOKEN,
        steps_in_flight=1,
        duration_s=point.duration_s,
    ).run()
    return {"policy": point.policy, "qps": point.qps, "seed": point.seed, **_figures(outcome)}


def search(wanted: Search) -> Figures:
    """The capacity of one policy under one seed, by TTFT to the end of the prompt and by TTFT to the first token."""
    point = wanted.point
    known = {figures["qps"]: figures for figures in wanted.runs}

    def at(qps: float) -> Figures:
        if qps not in known:
            known[qps] = simulate(replace(point, qps=qps))
        return known[qps]

    found = {ttft: _capacity(at, known, ttft) for ttft in TTFTS}
    return {
        "policy": point.policy,
        "seed": point.seed,
        "rps": found["ttft_prefill_s"],
        "rps_first_token": found["ttft_s"],
        "probes": [
            {
                "qps": qps,
                **{ttft: known[qps][ttft]["p50"] for ttft in TTFTS},
                "met": meets(known[qps], "ttft_prefill_s"),
            }
            for qps in sorted(known)
        ],
    }


def meets(figures: Figures, ttft: str) -> bool:
    """Whether a run meets the paper's criterion, with that TTFT."""
    median = figures[ttft][JUDGED]
    late = [name for name, limit_s in TBT_S.items() if (figures["tbt_s"][name]["p99"] or 0.0) >= limit_s]
    few = figures["unfinished"] <= UNFINISHED_SHARE * figures["arrived"]
    return median is not None and median < MEDIAN_TTFT_S and not late and few


def _capacity(at: Callable[[float], Figures], known: Mapping[float, Figures], ttft: str) -> float | None:
    """The largest rate that meets the criterion, to 1 %; None: none does."""
    low, high = _bracket(known, ttft)
    for nudge in (1 - PRECISION / 3, 1 + PRECISION / 3):
        # The medians on both sides say about where it is: two runs there save most of the bisection.
        crossing = _crossing(known, low, high, ttft)
        if crossing is not None and low < crossing * nudge < high:
            at(crossing * nudge)
            low, high = _bracket(known, ttft)
    return find_capacity(lambda qps: meets(at(qps), ttft), low_qps=low, high_qps=high, precision=PRECISION).qps


def _bracket(known: Mapping[float, Figures], ttft: str) -> tuple[float, float]:
    """The smallest rate that fails, and the largest below it that passes; twice or half the other where one is not
    known.
    """
    fails = min((qps for qps, figures in known.items() if not meets(figures, ttft)), default=None)
    passes = max((qps for qps in known if fails is None or qps < fails), default=None)
    if passes is None:
        return (fails or 2.0) / 2, fails or 2.0
    return passes, fails or 2 * passes


def _crossing(known: Mapping[float, Figures], low: float, high: float, ttft: str) -> float | None:
    """Where the logarithm of the median, taken to be a straight line, reaches the criterion."""
    medians = [known[qps][ttft][JUDGED] if qps in known else None for qps in (low, high)]
    below, above = medians
    if below is None or above is None or not below < MEDIAN_TTFT_S <= above:
        return None
    return low + (high - low) * log(MEDIAN_TTFT_S / below) / log(above / below)


def _lengths(options: Options) -> tuple[list[tuple[int, int]], str]:
    if options.data is None:
        return sharegpt_lengths(SYNTHETIC_SEED), SYNTHETIC
    try:
        return read_lengths(read_text(options.data, TRACE), str(options.data / TRACE)), TRACE
    except TraceError as error:
        raise ExperimentError(str(error)) from error


def _check_classes(name: str, document: bytes) -> None:
    classes = [slo.name for slo in load_policy(document, name).classes]
    if not set(TBT_S).issubset(classes):
        raise ExperimentError(
            f"--policy {name}: has the classes {', '.join(classes)}; this experiment needs paid and free"
        )


def _figures(outcome: Outcome) -> Figures:
    served = outcome.served
    long = [one for one in served if one.asked.prompt_tokens > LONG_TOKENS]
    by_class = outcome.gaps_s
    gaps = {name: np.sort(by_class.get(name, np.zeros(0))) for name in TBT_S}
    finished = sum(one.finished_at_s is not None for one in served)
    return {
        "arrived": len(served),
        "unfinished": len(served) - finished,
        "ttft_prefill_s": _waits(served, _prefill_wait_s),
        "ttft_s": _waits(served, _token_wait_s),
        "tbt_s": {
            **{name: _quantiles(samples) for name, samples in gaps.items()},
            "all": _quantiles(np.sort(np.concatenate(list(gaps.values())))),
        },
        "refused": sum(bool(one.refusal) for one in served),
        "preemptions": outcome.preemptions,
        "arrived_per_s": len(served) / outcome.simulated_s,
        "step_s": {"mean": outcome.simulated_s / outcome.num_steps if outcome.num_steps else None},
        "long_prompts": {"above_tokens": LONG_TOKENS, "ttft_prefill_s": _waits(long, _prefill_wait_s)},
        "by_prompt_tokens": _buckets(served),
    }


def _buckets(served: list[Served]) -> list[Figures]:
    buckets: dict[int, list[Served]] = {}
    for one in served:
        buckets.setdefault((one.asked.prompt_tokens - 1) // BUCKET_TOKENS, []).append(one)
    return [
        {
            "up_to": (number + 1) * BUCKET_TOKENS,
            "arrived": len(members),
            "finished": sum(one.finished_at_s is not None for one in members),
            "ttft_prefill_s": _waits(members, _prefill_wait_s),
        }
        for number, members in sorted(buckets.items())
    ]


def _waits(served: list[Served], wait_s: Callable[[Served], float]) -> Figures:
    """Percentiles over all of them: one that never got there has waited forever, and None stands for that. The mean is
    of those that did.
    """
    ascending = np.sort([wait_s(one) for one in served])
    known = ascending[ascending < inf]
    ended = np.sort([inf if one.finished_at_s is None else wait_s(one) for one in served])
    return {
        **_quantiles(ascending),
        "mean": float(known.mean()) if len(known) else None,
        JUDGED: _quantiles(ended)["p50"],
    }


def _prefill_wait_s(one: Served) -> float:
    return inf if one.prefill_done_at_s is None else one.prefill_done_at_s - one.asked.arrived_at_s


def _token_wait_s(one: Served) -> float:
    return inf if one.first_token_at_s is None else one.first_token_at_s - one.asked.arrived_at_s


def _quantiles(ascending: NDArray[np.float64]) -> Figures:
    """Nearest rank; None: no samples, or infinite."""
    count = len(ascending)
    found = {name: float(ascending[max(0, ceil(share * count) - 1)]) if count else inf for name, share in SHARES}
    return {name: value if value < inf else None for name, value in found.items()}
