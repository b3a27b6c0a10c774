"""RAD's theorems on the machine they speak of (arXiv 2508.01002; scheduling specification, 2.2, 5.6 and 7): tiles of
128 tokens, no attention, room for a tile of the longest sequences.

Owns that set-up and what the theory says of it: no policy serves more tokens than full tiles would (theorem 1), and RAD
serves any load below that (theorem 2). A run at a load the policy cannot hold ends with a backlog that grew all along.
"""

from itertools import product
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from policies.document.loading import load_policy
from policies.simulation.driver import Simulation
from policies.simulation.executor_model import DEVICES
from policies.simulation.experiments import ExperimentError, Options, Progress, spread
from policies.simulation.outcome import Outcome, Served
from policies.simulation.workload import TraceRequest

POLICIES = ("rad", "sarathi", "orca", "vllm", "fastertransformer")
OWN: dict[str, bytes] = {}
DEVICE = "toy-tile"
TILE_TOKENS = 128
FULL_STEP_S = 4640e-6
"""Of a full tile: 4000 us of matrix products and 5 us for each token."""
LONGEST_PROMPT_TILES = 8
MEAN_OUTPUT_TOKENS = 200
LONGEST_OUTPUT_TOKENS = 512
SERVED_TOKENS_PER_S = TILE_TOKENS / FULL_STEP_S
MEAN_REQUEST_TOKENS = 761.2
"""576 of prompt and 185.2 of output."""
CAPACITY_RPS = SERVED_TOKENS_PER_S / MEAN_REQUEST_TOKENS
LOADS = (0.55, 0.66, 0.83, 0.95, 1.05)
SEEDS = (1,)
DURATION_S = 2000.0
FLUCTUATION_TOKENS = 150_000
DIVERGED_SHARE = 0.02
"""Of what full tiles serve in the time: a backlog above both is drift, not fluctuation."""

Figures = dict[str, Any]


class Point(Struct, frozen=True):
    """One run: a policy at a rate, under one seed."""

    policy: str
    document: bytes
    qps: float
    seed: int
    duration_s: float


def run(options: Options, progress: Progress) -> Figures:
    """Every policy at every rate and seed.

    Raises:
        ExperimentError: something was asked for that the theory leaves no room for.
    """
    if (options.data, options.executor_efficiency, options.strict_share) != (None, None, None):
        raise ExperimentError(
            "rad takes no --data, --executor-efficiency or --strict-share: the workload and the device are the theory's"
        )
    qps = options.qps or tuple(round(load * CAPACITY_RPS, 2) for load in LOADS)
    duration_s = options.duration_s or DURATION_S
    points = [
        Point(name, on_tiles(document, name), rate, seed, duration_s)
        for (name, document), seed, rate in product(options.policies.items(), options.seeds or SEEDS, qps)
    ]
    done = 0

    def on_done() -> None:
        nonlocal done
        done += 1
        progress(done, len(points))

    progress(0, len(points))
    return {
        "runs": spread(simulate, points, processes=options.processes, on_done=on_done),
        "bound": {"tokens_per_s": SERVED_TOKENS_PER_S, "rps": CAPACITY_RPS},
        "setup": {"executor": DEVICE, "tile_tokens": TILE_TOKENS, "duration_s": duration_s, "steps_in_flight": 1},
    }


def on_tiles(document: bytes, name: str) -> bytes:
    """The policy with the theory's sizes: as many sequences as a tile has columns, and steps of one tile where it cuts
    prompts.
    """
    policy = load_policy(document, name)
    batching = policy.batching
    cuts = any(stage.prefill is not None and stage.prefill.chunked for stage in batching.stages)
    budget = TILE_TOKENS if cuts else batching.token_budget
    sized = msgspec.structs.replace(batching, token_budget=budget, max_sequences=TILE_TOKENS, max_decodes=TILE_TOKENS)
    return msgspec.yaml.encode(msgspec.structs.replace(policy, batching=sized))


def workload(qps: float, seed: int, duration_s: float) -> list[TraceRequest]:
    """Poisson arrivals; prompts of 1 to 8 whole tiles, outputs geometric around 200 tokens and cut at 512."""
    generator = np.random.default_rng(seed)
    count = int(generator.poisson(qps * duration_s))
    arrivals = np.sort(generator.random(count)) * duration_s
    prompts = TILE_TOKENS * generator.integers(1, LONGEST_PROMPT_TILES + 1, count)
    outputs = np.minimum(np.floor(generator.exponential(MEAN_OUTPUT_TOKENS, count)) + 1, LONGEST_OUTPUT_TOKENS)
    rows = zip(arrivals.tolist(), prompts.tolist(), outputs.astype(int).tolist(), strict=True)
    return [TraceRequest(at, "free", "free", prompt, output) for at, prompt, output in rows]


def simulate(point: Point) -> Figures:
    """One run, as figures."""
    outcome = Simulation(
        point.document,
        workload(point.qps, point.seed, point.duration_s),
        DEVICES[DEVICE](1.0),
        steps_in_flight=1,
        duration_s=point.duration_s,
    ).run()
    return {"policy": point.policy, "qps": point.qps, "seed": point.seed, **_figures(outcome, point.duration_s)}


def backlog_tokens(served: list[Served]) -> int:
    """Prompt and output tokens still to be computed; a prompt that is half done counts whole."""
    return sum(
        one.asked.prompt_tokens * (one.prefill_done_at_s is None) + one.asked.output_tokens - one.output_tokens
        for one in served
        if one.finished_at_s is None
    )


def _figures(outcome: Outcome, duration_s: float) -> Figures:
    arrived = sum(one.asked.prompt_tokens + one.asked.output_tokens for one in outcome.served)
    backlog = backlog_tokens(outcome.served)
    served_per_s = outcome.num_step_tokens / duration_s
    return {
        "arrived": len(outcome.served),
        "unfinished": sum(one.finished_at_s is None for one in outcome.served),
        "load": arrived / duration_s / SERVED_TOKENS_PER_S,
        "backlog_tokens": backlog,
        "diverged": backlog > max(FLUCTUATION_TOKENS, DIVERGED_SHARE * duration_s * SERVED_TOKENS_PER_S),
        "tokens_per_s": served_per_s,
        "share_of_bound": served_per_s / SERVED_TOKENS_PER_S,
        "tile_fill": outcome.tile_fill,
        "preemptions": outcome.preemptions,
    }


def table(figures: Figures) -> str:
    """The bound, and how each policy did against it."""
    bound = figures["bound"]
    title = (
        f"theorem 1: no policy serves more than {bound['tokens_per_s']:,.0f} tokens/s here, {bound['rps']:.2f} "
        f"requests/s; {figures['setup']['duration_s']:g} s a run"
    )
    columns = f"{'policy':18}{'qps':>7}{'seed':>6}{'load':>7}{'served':>8}{'tile fill':>11}{'backlog':>12}"
    lines = [title, f"{columns}  theory says, obtained"]
    for one in figures["runs"]:
        obtained = "diverges" if one["diverged"] else "stable"
        lines.append(
            f"{one['policy']:18}{one['qps']:>7.2f}{one['seed']:>6}{one['load']:>7.3f}{one['share_of_bound']:>8.3f}"
            f"{one['tile_fill']:>11.3f}{one['backlog_tokens']:>12,}  {_theory(one)}, {obtained}"
        )
    lines.append("load and served: shares of the bound; backlog: tokens left at the end")
    return "\n".join(lines)


def _theory(one: Figures) -> str:
    """Theorem 1 speaks of everybody above the bound, theorem 2 of RAD below it."""
    if one["load"] > 1:
        return "diverges"
    return "stable" if one["policy"].startswith("rad") else "no claim"
