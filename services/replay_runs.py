"""The runs of `fairlead replay`: one, one for each seed, or as many as the search for a capacity takes.

Knows how runs are spread over processes and put together; what a run is belongs to policies/simulation.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from statistics import median
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from policies.scheduling.core import FirstToken
from policies.simulation.capacity import find_capacity
from policies.simulation.criteria import Hopeless, Verdict, judge, parse_criteria
from policies.simulation.driver import Simulation
from policies.simulation.outcome import Outcome
from policies.simulation.report import Figures, report
from policies.simulation.samples import Samples
from services.replay_inputs import ReplayError, Requests, read_device, read_scaled_workload, read_workload

ACROSS: tuple[tuple[str, Callable[[Sequence[float]], float]], ...] = (("median", median), ("min", min), ("max", max))

DEFAULT_QPS = 1.0
BRACKET = 1.25
"""The rate that is tried after the first one that passes, over it; from there the search doubles."""


class Run(Struct, frozen=True, kw_only=True):
    """What was asked for; read anew in every process."""

    document: bytes
    trace: str
    executor: str
    executor_efficiency: float
    num_executors: int
    first_token: FirstToken
    steps_in_flight: int
    seed: int
    qps: float | None = None
    duration_s: float | None = None
    bucket_tokens: int | None = None
    check: bool = False


class Search(Struct, frozen=True, kw_only=True):
    """A capacity to be found for one seed."""

    run: Run
    criteria: str
    classes: list[str]
    precision: float
    max_unfinished: float


def simulation(run: Run, requests: Requests, **options: Any) -> Simulation:
    """The simulation of a run over these requests; `options` are further ones of `Simulation`."""
    return Simulation(
        run.document,
        requests,
        read_device(run.executor, efficiency=run.executor_efficiency, seed=run.seed),
        first_token=run.first_token,
        num_executors=run.num_executors,
        steps_in_flight=run.steps_in_flight,
        duration_s=run.duration_s,
        check=run.check,
        **options,
    )


def requests_of(run: Run) -> Requests:
    """The workload of a run."""
    device = read_device(run.executor, efficiency=run.executor_efficiency, seed=run.seed)
    workload = read_workload(
        run.trace, seed=run.seed, duration_s=run.duration_s, max_sequence_tokens=device.max_sequence_tokens
    )
    return workload(run.qps)


def simulate(run: Run) -> Figures:
    """One run of several: its report, and its seed."""
    started = time.perf_counter()
    outcome = simulation(run, requests_of(run)).run()
    return {"seed": run.seed, **report(outcome, time.perf_counter() - started, bucket_tokens=run.bucket_tokens)}


def search(wanted: Search) -> Figures:
    """The capacity for one seed; every probe is printed to stderr when it has ended."""
    run = wanted.run
    device = read_device(run.executor, efficiency=run.executor_efficiency, seed=run.seed)
    workload = read_scaled_workload(
        run.trace, seed=run.seed, duration_s=run.duration_s, max_sequence_tokens=device.max_sequence_tokens
    )
    probes: list[Figures] = []

    def probe(qps: float) -> bool:
        requests = workload(qps)
        if not any(run.duration_s is None or request.arrived_at_s <= run.duration_s for request in requests):
            raise ReplayError(f"at {qps:g} requests/s nobody arrives within the run: give a longer --duration-s")
        outcome, verdict = _judged(wanted, requests)
        probes.append(_probe(qps, outcome, verdict))
        print(_line(run.seed, probes[-1]), file=sys.stderr, flush=True)
        return verdict.met

    low_qps = run.qps or DEFAULT_QPS
    found = find_capacity(probe, low_qps=low_qps, high_qps=BRACKET * low_qps, precision=wanted.precision)
    return {"seed": run.seed, "rps": found.qps, "bounded": found.bounded, "probes": probes}


def across(figures: Sequence[Mapping[str, Any]]) -> Figures:
    """Median, least and greatest of every number that all of them have under the same keys; nothing of nothing."""
    if not figures:
        return {}
    return {name: _combined(figures, combine) for name, combine in ACROSS}


def _judged(wanted: Search, requests: Requests) -> tuple[Outcome, Verdict]:
    criteria = parse_criteria(wanted.criteria, wanted.classes)
    give_up = Hopeless(criteria, requests, wanted.run.duration_s)
    outcome = simulation(wanted.run, requests, give_up=give_up).run()
    verdict = judge(criteria, Samples(outcome), wanted.max_unfinished)
    return outcome, verdict._replace(met=verdict.met and not outcome.given_up)


def _probe(qps: float, outcome: Outcome, verdict: Verdict) -> Figures:
    """A probe as JSON-ready values: a figure that too few requests got to is None. Figures of a run that was given up
    are those it had then.
    """
    return {
        "qps": qps,
        "met": verdict.met,
        "given_up_at_s": outcome.simulated_s if outcome.given_up else None,
        "arrived": len(outcome.served),
        "unfinished_share": verdict.unfinished_share,
        "criteria": {text: value if value is None or isfinite(value) else None for text, value in verdict.values},
    }


def _line(seed: int, probe: Mapping[str, Any]) -> str:
    verdict = "kept" if probe["met"] else "not kept"
    if probe["given_up_at_s"] is not None:
        return f"seed {seed}: {probe['qps']:.4f} requests/s: {verdict}, given up after {probe['given_up_at_s']:.0f} s"
    values = ", ".join(
        f"{text.partition('<')[0]} {'-' if value is None else f'{value:.4f}'}"
        for text, value in probe["criteria"].items()
    )
    return (
        f"seed {seed}: {probe['qps']:.4f} requests/s: {verdict}; {values}, unfinished {probe['unfinished_share']:.1%}"
    )


def _combined(values: Sequence[Any], combine: Callable[[Sequence[float]], float]) -> Any:
    match values[0]:
        case dict():
            keys = [key for key in values[0] if all(isinstance(other, dict) and key in other for other in values)]
            nested = {key: _combined([value[key] for value in values], combine) for key in keys if key != "seed"}
            return {key: value for key, value in nested.items() if value is not None}
        case bool():
            return None
        case int() | float() if all(isinstance(value, int | float) for value in values):
            return combine(values)
        case _:
            return None


def runs_of(run: Run, seeds: Sequence[int]) -> list[Run]:
    """The same run under each seed."""
    return [replace(run, seed=seed) for seed in seeds]
