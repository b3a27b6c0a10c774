"""A_min, A_max and their kin in the papers' model (arXiv 2508.14544, 2502.07115; prediction specification, 4 to 8): one
executor, a step a second, one token a sequence and step, memory counted in tokens.

Owns that machine and the comparison with hindsight. It is the scheduler that serves, on a device of unit steps and
blocks of one token; nothing is scheduled here.
"""

from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from policies.commands import Command
from policies.simulation.driver import SCHEDULER, Simulation
from policies.simulation.executor_model import Device
from policies.simulation.experiments import ExperimentError, Options, Progress, spread
from policies.simulation.experiments.amin_settings import DRAWN, LONGEST, SETTINGS, Lengths, Setting, document
from policies.simulation.experiments.amin_table import table
from policies.simulation.step_shape import StepShape
from policies.simulation.workload import TraceRequest

POLICIES = ()
"""Of shipped ones: none. The papers' model has policies of its own, made here."""
OWN: dict[str, bytes] = {}
SEEDS = (0, 1, 2)
BEGIN_S = 1.0
"""When the first plan with everybody is made: until then one sequence of one token runs, so that all are there."""
LONG_SHARE = 0.05

Figures = dict[str, Any]
__all__ = ["POLICIES", "run", "table"]


class UnitStep:
    """Every step takes a second."""

    def step_s(self, shape: StepShape) -> float:  # noqa: ARG002  whatever is in it
        """Seconds of a step."""
        return 1.0


class Ran(Struct, frozen=True):
    """What a run came to."""

    latency_s: NDArray[np.float64]
    """From arrival to the end, of each request; a step is a second."""
    num_preemptions: int
    most_preemptions: int
    """Of one request."""
    recomputed_tokens: int
    num_steps: int
    peak_tokens: int
    """Most memory held after a plan."""


class Point(Struct, frozen=True):
    """One run: a setting, a policy and a seed."""

    setting: Setting
    policy: str
    seed: int


def run(options: Options, progress: Progress) -> Figures:
    """Every setting under every policy and seed.

    Raises:
        ExperimentError: something was asked for that the papers' model has no room for.
    """
    asked = (options.data, options.executor_efficiency, options.strict_share, options.duration_s)
    if asked != (None, None, None, None) or options.qps or options.policies:
        raise ExperimentError(
            "amin compares policies of its own on a machine of unit steps; of the options only --seeds, --processes, "
            "--json and --html apply"
        )
    seeds = options.seeds or SEEDS
    points = [
        Point(setting, policy, seed)
        for setting in SETTINGS
        for policy in ("hindsight", *setting.policies)
        for seed in seeds
    ]
    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        progress(done, len(points))

    ran = spread(_figures, points, processes=options.processes, on_done=tell)
    return {"experiment": "amin", "seeds": list(seeds), "settings": _by_setting(points, ran)}


def _by_setting(points: list[Point], ran: list[Figures]) -> list[Figures]:
    settings = []
    for setting in SETTINGS:
        mine = [(point, figures) for point, figures in zip(points, ran, strict=True) if point.setting is setting]
        base = {point.seed: figures["mean_latency_s"] for point, figures in mine if point.policy == "hindsight"}
        runs = [
            {
                "policy": point.policy,
                "seed": point.seed,
                "of_hindsight": figures["mean_latency_s"] / base[point.seed],
                "seen": setting.policies.get(point.policy, ""),
                **figures,
            }
            for point, figures in mine
        ]
        sizes = {"num_requests": setting.num_requests, "kv_tokens": setting.kv_tokens, "load": setting.load}
        settings.append({"setting": setting.name, **sizes, "runs": runs})
    return settings


def _figures(point: Point) -> Figures:
    setting = point.setting
    outputs, prompts, arrivals = drawn(setting, point.seed)
    ran = simulate(document(point.policy, setting.prediction), outputs, prompts, setting.kv_tokens, arrivals=arrivals)
    num_long = max(1, round(LONG_SHARE * len(outputs)))
    longest = np.argsort(outputs, kind="stable")[-num_long:]
    return {
        "mean_latency_s": float(ran.latency_s.mean()),
        "p99_latency_s": float(np.quantile(ran.latency_s, 0.99, method="inverted_cdf")),
        "mean_latency_of_longest_s": float(ran.latency_s[longest].mean()),
        "preemptions": ran.num_preemptions,
        "most_preemptions": ran.most_preemptions,
        "recomputed_tokens": ran.recomputed_tokens,
        "steps": ran.num_steps,
        "peak_kv_tokens": ran.peak_tokens,
    }


def drawn(setting: Setting, seed: int) -> tuple[Lengths, Lengths, NDArray[np.float64] | None]:
    """Output lengths, prompt lengths and arrivals (seconds; None: all at the start) of a setting."""
    generator = np.random.default_rng(seed)
    outputs = DRAWN[setting.outputs](generator, setting.num_requests)
    prompts = DRAWN[setting.prompts](generator, setting.num_requests)
    if setting.load is None:
        return outputs, prompts, None
    volumes = outputs * prompts + outputs * (outputs + 1) // 2
    gaps = generator.exponential(float(volumes.mean()) / (setting.load * setting.kv_tokens), setting.num_requests)
    return outputs, prompts, np.cumsum(gaps)


def simulate(
    policy: bytes,
    outputs: Lengths,
    prompts: Lengths,
    kv_tokens: int,
    *,
    arrivals: NDArray[np.float64] | None = None,
    longest: int = LONGEST,
    check: bool = False,
) -> Ran:
    """A policy on the papers' machine.

    Args:
        policy: its document.
        outputs: tokens that each request will produce.
        prompts: tokens of each prompt.
        kv_tokens: memory.
        arrivals: seconds after the first; None: all at once.
        longest: what every request asks for at most.
        check: check every invariant after every event.
    """
    times = np.zeros(len(outputs)) if arrivals is None else arrivals
    requests = [TraceRequest(0.0, "all", "all", 1, 1)]
    for at_s, prompt, output in zip(times.tolist(), prompts.tolist(), outputs.tolist(), strict=True):
        requests.append(TraceRequest(BEGIN_S / 2 + at_s, "all", "all", prompt, output, max_output_tokens=longest))
    device = Device("a step a second", kv_tokens, 1, kv_tokens, UnitStep())
    peak_tokens = 0

    def watch(core: str, _now: float, _event: Any, commands: list[Command]) -> None:
        nonlocal peak_tokens
        if core == SCHEDULER and commands:
            peak_tokens = max(peak_tokens, simulation.scheduler.snapshot().used_blocks)

    simulation = Simulation(policy, requests, device, steps_in_flight=1, check=check, observer=watch)
    outcome = simulation.run()
    served = outcome.served[1:]
    ended = np.array([np.nan if one.finished_at_s is None else one.finished_at_s for one in served])
    seen = simulation.scheduler.snapshot()
    return Ran(
        latency_s=ended - BEGIN_S - times,
        num_preemptions=outcome.preemptions,
        most_preemptions=max(one.num_starts for one in served) - 1,
        recomputed_tokens=seen.num_recomputed_tokens,
        num_steps=outcome.num_steps,
        peak_tokens=peak_tokens,
    )
