"""VTC's evaluation (Sheng et al., OSDI 2024; fairness specification, section 12): Llama-2-7B on an A10G, the authors'
workloads, and how evenly each policy serves their tenants.

Owns the set-up and how runs are made. The step times are a model of that device, not the device.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct, to_builtins

from policies.document.loading import load_policy
from policies.simulation.driver import Simulation
from policies.simulation.executor_model import DEVICES, BatchContext, Device
from policies.simulation.experiments import ExperimentError, Options, Progress, read_text, spread
from policies.simulation.experiments.vtc_checks import checks
from policies.simulation.experiments.vtc_metrics import figures
from policies.simulation.experiments.vtc_pairs import PairMeter
from policies.simulation.experiments.vtc_published import PUBLISHED
from policies.simulation.experiments.vtc_settings import (
    CASES,
    COUNTED,
    OWN,
    POOL_TOKENS,
    REAL,
    SEED,
    Case,
    document,
)
from policies.simulation.experiments.vtc_table import table
from policies.simulation.experiments.vtc_workloads import chat_of_27, workload
from policies.simulation.parameters import Parameters
from policies.simulation.profiles import Asked, ProfileError, read_cost_profile
from policies.simulation.trace_request import TraceError, TraceRequest
from policies.simulation.workload import read_trace

POLICIES = tuple(OWN)
TRACE, PROFILE = "chatbot_arena_27_clients.csv", "a10g_llama2_7b_cost_profile.json"
SYNTHETIC = "synthetic requests of the same statistics"
DEVICE = "a10g-llama2-7b"

Figures = dict[str, Any]
__all__ = ["OWN", "POLICIES", "run", "table"]


class Point(Struct, frozen=True):
    """One run, and the cases that it is counted as: the same decisions judged by one cost or another."""

    cases: list[Case]
    document: bytes
    requests: list[TraceRequest]
    seed: int
    efficiency: float


def run(options: Options, progress: Progress) -> Figures:
    """Every case of the paper, and every other policy that was asked for on all of the workloads.

    Raises:
        ExperimentError: the data cannot be used, or something was asked for that these workloads have no room for.
    """
    if options.qps or options.strict_share is not None or options.duration_s is not None:
        raise ExperimentError(
            "the workloads of vtc have one class, and rates and durations of their own: --qps, --strict-share and "
            "--duration-s do not apply"
        )
    efficiency = options.executor_efficiency or 1.0
    trace = None if options.data is None else trace_of(options.data)
    fitted = None if options.data is None else _constants(_fitted(options.data, efficiency))
    seeds = options.seeds or (SEED,)
    tasks = [point for seed in seeds for point in points(options, seed, trace)]
    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        progress(done, len(tasks))

    progress(0, len(tasks))
    # The longest first, so that the last process to end does not start with a long one.
    by_size = sorted(tasks, key=lambda point: -len(point.requests))
    cases = [one for ran in spread(simulate, by_size, processes=options.processes, on_done=tell) for one in ran]
    order = {case: number for number, case in enumerate(CASES)}
    cases.sort(key=lambda one: (seeds.index(one["seed"]), order.get(case_of(one), len(order))))
    for one in cases:
        comparable = one["seed"] == SEED and (trace is not None or one["workload"] != REAL)
        published = PUBLISHED.get(case_of(one)) if comparable else None
        one["published"] = None if published is None else to_builtins(published)
    return {
        "cases": cases,
        "checks": [check for seed in seeds for check in checks([one for one in cases if one["seed"] == seed])],
        "setup": {
            "trace": SYNTHETIC if trace is None else TRACE,
            "executor": DEVICE,
            "pool_tokens": POOL_TOKENS,
            "step_time": _constants(DEVICES[DEVICE](efficiency)),
            "step_time_fitted": fitted,
        },
    }


def points(options: Options, seed: int, trace: list[TraceRequest] | None) -> list[Point]:
    """The runs of one seed; without a trace, synthetic requests stand in for it."""
    by_run: dict[tuple[str, bytes], list[Case]] = {}
    for case in _cases(options):
        own = case.policy in OWN and options.policies[case.policy] == OWN[case.policy]
        decides = document(case.policy, case.cost) if own else options.policies[case.policy]
        by_run.setdefault((case.workload, decides), []).append(case)
    requests = {name: workload(name, seed) for name, _ in by_run if name != REAL}
    requests[REAL] = chat_of_27(seed) if trace is None else trace
    efficiency = options.executor_efficiency or 1.0
    return [Point(cases, decides, requests[name], seed, efficiency) for (name, decides), cases in by_run.items()]


def _cases(options: Options) -> Iterator[Case]:
    """Those of the paper whose policy was asked for; of other policies all workloads."""
    workloads = dict.fromkeys(case.workload for case in CASES)
    yield from (case for case in CASES if OWN[case.policy] == options.policies.get(case.policy))
    for name, decides in options.policies.items():
        if OWN.get(name) != decides:
            yield from (Case(workload, name) for workload in workloads)


def simulate(point: Point) -> list[Figures]:
    """One run, as figures of each of its cases."""
    device = DEVICES[DEVICE](point.efficiency)._replace(num_blocks=POOL_TOKENS, block_tokens=1)
    simulation = Simulation(point.document, point.requests, device, steps_in_flight=1, decides="between_steps")
    bounded = load_policy(point.document).fairness.kind == "vtc"
    pairs = PairMeter(simulation.admission)
    if bounded:
        simulation.observers.append(pairs)
    outcome = simulation.run()
    bound = simulation.admission.bound
    measured = {
        "gap": outcome.max_gap,
        "gap_ratio": outcome.max_gap_ratio,
        "pair_ratio": pairs.largest / (2 * bound) if bounded and bound else None,
        "peak_window_tokens": simulation.admission.window.peak_tokens,
        "preemptions": outcome.preemptions,
    }
    return [
        {**case._asdict(), "seed": point.seed, **figures(outcome.served, COUNTED[case.cost]), **measured}
        for case in point.cases
    ]


def case_of(figures: Figures) -> Case:
    """Which case these are the figures of."""
    return Case(figures["workload"], figures["policy"], figures["cost"])


def trace_of(folder: Path) -> list[TraceRequest]:
    """The published trace.

    Raises:
        ExperimentError: it is not there, or is no trace.
    """
    text = read_text(folder, TRACE)
    try:
        return read_trace(text, str(folder / TRACE), qps=None, seed=SEED)
    except TraceError as error:
        raise ExperimentError(str(error)) from error


def _fitted(folder: Path, efficiency: float) -> Device:
    """The device as fitted to the published times; runs go by the constants, so that they need no folder."""
    asked = Asked(Parameters(""), read_text(folder, PROFILE), str(folder / PROFILE), efficiency)
    try:
        return read_cost_profile(asked)
    except ProfileError as error:
        raise ExperimentError(str(error)) from error


def _constants(device: Device) -> dict[str, float]:
    step_time = device.step_time
    if not isinstance(step_time, BatchContext):
        raise TypeError(f"{DEVICE} has a {type(step_time).__name__}, not a step time of batch and context")
    return step_time._asdict()
