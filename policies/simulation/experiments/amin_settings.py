"""What the A_min experiment compares: policies of the papers' model, lengths, and what was measured of them before.

Owns the set-ups of the prediction specification, sections 4 to 8. Runs nothing.
"""

from collections.abc import Callable
from math import log, sqrt
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

LONGEST = 1000
"""Output tokens that a request may ask for."""
PROMPT_TOKENS = 41
"""Where all prompts are alike."""
Lengths = NDArray[np.int64]

DOCUMENT = """version: 1
name: {name}
classes: [{{name: all, ttft_s: 1, tbt_s: 1}}]
fairness: {{kind: fcfs, max_requests: 1000000}}
queue: {{per_tenant_max: 1000000, total_max: 1000000, ttl_s: 1000000000}}
batching:
  token_budget: none
  max_sequences: 1000000
  max_decodes: 1000000
  {aging}
  stages:
    - decode:  {{when: any, order: [{decodes}]}}
    - prefill: {{from: waiting, order: [{order}], chunked: false}}
kv: {{admit: future, estimate: {estimate}, reserve: {reserve}, convention: paper, watermark: 0, share: none}}
preemption: {{victim: [{victim}, self], requeue: ordered, resume: {resume}{guard}}}
prediction: {{{prediction}}}
"""
"""The papers' machine has no budget and no places: memory alone binds. Fair queueing is off."""


class Rule(Struct, frozen=True):
    """A policy of section 3, as far as it differs from A_min."""

    estimate: str = "lower"
    decodes: str = "most_predicted_output"
    order: str = "predicted_output"
    victim: str = "least_predicted_output"
    resume: str = "keep_tokens"
    reserve: float = 0.0
    aging_s: int | None = None
    max_preemptions: int | None = None
    prediction: str | None = None
    """Instead of the setting's."""
    more: str = ""
    """Added to the prediction."""


ARRIVAL: dict[str, Any] = {"decodes": "arrival", "victim": "newest"}
RULES: dict[str, Rule] = {
    "hindsight": Rule(estimate="oracle", prediction="kind: oracle", **ARRIVAL),
    "hindsight_volume": Rule(estimate="oracle", prediction="kind: oracle", order="predicted_kv_volume", **ARRIVAL),
    "amax": Rule(estimate="upper", **ARRIVAL),
    "amin": Rule(),
    "amin_restart": Rule(resume="restart"),
    "amin_volume": Rule(order="predicted_kv_volume"),
    "amin_quantile": Rule(more=", survive: {quantile: 0.1}"),
    "a_l": Rule(more=", survive: {support: [20, 400]}"),
    "amid": Rule(estimate="point", more=", point: midpoint"),
    "mcsf": Rule(estimate="point", reserve=0.1),
    "fcfs_optimistic": Rule(order="arrival", **ARRIVAL),
    "fcfs_reserving": Rule(estimate="upper", order="arrival", **ARRIVAL),
    "amin_guarded": Rule(order="aged, predicted_output", aging_s=1000, max_preemptions=4),
}


class Setting(Struct, frozen=True):
    """Requests, what is predicted of them, and the range that each policy's mean latency over hindsight's was in."""

    name: str
    prediction: str
    policies: dict[str, str]
    """Policy -> the range seen before, from the specification; empty where it gives none."""
    outputs: str = "lognormal"
    prompts: str = "equal"
    num_requests: int = 500
    kv_tokens: int = 3000
    load: float | None = None
    """Of what the memory can serve, Poisson arrivals; None: all requests are there at the start."""


def document(policy: str, prediction: str) -> bytes:
    """A policy that goes by this prediction, in the papers' model."""
    rule = RULES[policy]
    guard = "" if rule.max_preemptions is None else f", max_per_sequence: {rule.max_preemptions}"
    return DOCUMENT.format(
        name=policy,
        aging="" if rule.aging_s is None else f"aging_s: {rule.aging_s}",
        decodes=rule.decodes,
        order=rule.order,
        estimate=rule.estimate,
        reserve=rule.reserve,
        victim=rule.victim,
        resume=rule.resume,
        guard=guard,
        prediction=(rule.prediction or prediction) + rule.more,
    ).encode()


def _lognormal(median: float, mean: float, longest: int) -> Callable[[np.random.Generator, int], Lengths]:
    sigma = sqrt(2 * log(mean / median))

    def draw(generator: np.random.Generator, count: int) -> Lengths:
        drawn = median * np.exp(sigma * generator.standard_normal(count))
        lengths: Lengths = np.clip(np.rint(drawn), 1, longest).astype(np.int64)
        return lengths

    return draw


def _two_point(share: float) -> Callable[[np.random.Generator, int], Lengths]:
    def draw(generator: np.random.Generator, count: int) -> Lengths:
        lengths: Lengths = np.where(generator.random(count) < share, 20, 400).astype(np.int64)
        return lengths

    return draw


def _cut(lengths: Lengths) -> Lengths:
    return np.minimum(lengths, LONGEST, dtype=np.int64)


def _geometric(generator: np.random.Generator, count: int) -> Lengths:
    return _cut(generator.geometric(1 / 80, count))


def _linear_geometric(generator: np.random.Generator, count: int) -> Lengths:
    # Chances in proportion to k r^k are those of two geometric draws' sum, less one.
    chance = 1 - (79 - 1) / (79 + 1)
    drawn = generator.geometric(chance, count) + generator.geometric(chance, count) - 1
    return _cut(drawn)


def _equal(_: np.random.Generator, count: int) -> Lengths:
    return np.full(count, PROMPT_TOKENS, np.int64)


DRAWN: dict[str, Callable[[np.random.Generator, int], Lengths]] = {
    "lognormal": _lognormal(45, 82, LONGEST),
    **{f"two_point_{share}": _two_point(share / 10) for share in (2, 5, 8)},
    "geometric": _geometric,
    "linear_geometric": _linear_geometric,
    "equal": _equal,
    "lognormal_prompts": _lognormal(11, 40, LONGEST),
}
"""Outputs and prompts by name."""

UNINFORMED = f"kind: constant, interval: {{lower: 1, upper: {LONGEST}}}"
BUCKETS = f"kind: bucket, borders: [{', '.join(str(border) for border in range(100, LONGEST, 100))}]"
TWO_POINT = "kind: distribution, prior: {{kind: two_point, values: [20, 400], shares: [{}, {}]}}"


def around(error: float, position: str) -> str:
    """Intervals of that relative half width with the truth in them."""
    return f"kind: oracle, error: {error}, position: {position}"


PAPER: dict[str, Any] = {"num_requests": 2000, "kv_tokens": 16_492}
"""The size of the papers' runs (Llama2-70B on two A100)."""
SETTINGS: tuple[Setting, ...] = (
    Setting(
        "no information",
        UNINFORMED,
        {"amax": "17.4", "amin": "2.6-2.9", "amid": "", "fcfs_optimistic": "2.6", "fcfs_reserving": "17.5"},
        **PAPER,
    ),
    Setting("buckets of 100", BUCKETS, {"amax": "1.54-1.57", "amin": "1.06-1.09", "amid": "", "mcsf": ""}, **PAPER),
    *(
        Setting(
            f"truth +- {error:.0%}, centred",
            around(error, "centre"),
            {"amax": amax, "amin": amin, "amid": "", "fcfs_optimistic": "2.6"},
            **PAPER,
        )
        for error, amax, amin in (
            (0.1, "1.06", "1.01"),
            (0.5, "1.32-1.35", "1.12-1.13"),
            (0.95, "1.65-1.67", "1.21-1.23"),
            (0.99, "1.66-1.70", "1.39-1.45"),
        )
    ),
    *(
        Setting(
            f"truth +- {error:.0%}, anywhere",
            around(error, "random"),
            {"amax": amax, "amin": amin, "amid": amid, "mcsf": "", "fcfs_optimistic": ""},
        )
        for error, amax, amin, amid in (
            (0.5, "1.40-1.43", "0.98-1.04", "1.04"),
            (0.95, "1.84-1.90", "1.19-1.20", "1.12-1.13"),
        )
    ),
    *(
        Setting(
            f"20 or 400 tokens, {share:.0%} short",
            TWO_POINT.format(share, round(1 - share, 1)),
            {
                "amax": "1.02-3.8",
                "amin_restart": restart,
                "amin": amin,
                "a_l": "1.01-1.08",
                "amin_quantile": "1.02-2.7",
            },
            outputs=f"two_point_{share * 10:.0f}",
        )
        for share, restart, amin in (
            (0.2, "1.06-1.19", "0.74-0.84"),
            (0.5, "1.05-1.31", "0.75-0.94"),
            (0.8, "1.04-1.85", "0.75-1.41"),
        )
    ),
    Setting(
        "geometric, mean 80",
        "kind: distribution, prior: {kind: geometric, mean: 80}",
        {"amin_restart": "1.82-2.19", "amin": "1.78-2.02", "amin_quantile": "1.87-2.20"},
        outputs="geometric",
    ),
    Setting(
        "linearly weighted geometric, mean 79",
        "kind: distribution, prior: {kind: linear_geometric, mean: 79}",
        {"amin_restart": "1.46-1.68", "amin": "1.44-1.73", "amin_quantile": "1.48-1.78"},
        outputs="linear_geometric",
    ),
    Setting(
        "prompts of different lengths",
        around(0.5, "random"),
        {"hindsight_volume": "0.74-0.81", "amin": "", "amin_volume": "0.65-0.94 of amin", "fcfs_optimistic": ""},
        prompts="lognormal_prompts",
    ),
    *(
        Setting(
            f"open stream at load {load:g}",
            around(0.5, "random"),
            {"fcfs_optimistic": "", "amin": amin, "amin_guarded": ""},
            num_requests=2000,
            kv_tokens=6000,
            load=load,
        )
        for load, amin in ((0.9, "0.80-0.81 of fcfs"), (1.1, "0.52-0.62 of fcfs"))
    ),
)
