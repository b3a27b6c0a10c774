"""What must hold between the knobs of KV memory and prediction, and which of them a live service refuses.

A part of `rules.py`, which says how a rule speaks.
"""

from itertools import pairwise

from msgspec import UNSET

from policies.document.memory import LENGTH_KEYS, Interval, Kv, Prediction, Preemption, Prior, Survival
from policies.document.reading import Path, Reading
from policies.document.schema import Policy, Stage
from policies.document.words import listed

STAGES: Path = ("batching", "stages")
KV: Path = ("kv",)
PREDICTION: Path = ("prediction",)
PREEMPTION: Path = ("preemption",)
OF_KIND = {
    "interval": ("constant",),
    "borders": ("bucket",),
    "prior": ("distribution",),
    "error": ("oracle",),
    "position": ("oracle",),
    "seed": ("oracle",),
    "coverage": ("conformal", "distribution"),
    "window": ("conformal",),
}
"""Knobs of `prediction` that only some kinds read."""
NEEDED = {"constant": "interval", "bucket": "borders", "distribution": "prior"}
OF_PRIOR = {
    "lognormal": ("median", "sigma"),
    "geometric": ("mean",),
    "linear_geometric": ("mean",),
    "two_point": ("values",),
    "empirical": ("values",),
}
MAX_LENGTH = 1_000_000
"""Tokens of one output."""
TRUTH = "a live service does not know how long an output will be"
REPLAY_ONLY: tuple[tuple[Path, str, str, str], ...] = (
    ((*KV, "estimate"), "oracle", TRUTH, "allowed: lower, point, upper"),
    ((*KV, "convention"), "paper", "no executor holds a token's KV before the step after it", "allowed: engine"),
    ((*PREDICTION, "kind"), "oracle", TRUTH, "allowed: conformal, constant, distribution"),
    ((*PREDICTION, "kind"), "bucket", TRUTH, "allowed: conformal, constant, distribution"),
    (
        (*PREEMPTION, "resume"),
        "restart",
        "a reader would get its tokens again",
        "allowed: keep_tokens",
    ),
)
"""Path, value, why a live service cannot have it, what it can have."""


def goes_by_lengths(policy: Policy) -> bool:
    """Whether anything in a policy reads how long an output is expected to be."""
    return _reads_lengths(policy.batching.stages, policy.kv, policy.preemption)


def _reads_lengths(stages: tuple[Stage, ...], kv: Kv, preemption: Preemption) -> bool:
    orders = [part.order for stage in stages if (part := stage.decode or stage.prefill) is not None]
    return (
        kv.admit == "future"
        or "least_predicted_output" in preemption.victim
        or any(key in LENGTH_KEYS for order in orders for key in order)
    )


def check_memory(reading: Reading) -> None:
    """Add every problem between the values of these sections."""
    _lengths_are_read(reading)
    _future_is_looked_at(reading)
    _protection_has_an_effect(reading)
    prediction = reading.get(PREDICTION)
    if isinstance(prediction, Prediction):
        _kind_has_what_it_needs(reading, prediction)
        _interval_is_ordered(reading, prediction.interval)
        _prior_has_what_it_needs(reading, prediction.prior)
        _survival_says_one_thing(reading, prediction)
        _ascends(reading, (*PREDICTION, "borders"), prediction.borders)


def check_live(reading: Reading) -> None:
    """Add a problem for everything that only a replay knows or allows."""
    for path, value, wrong, instead in REPLAY_ONLY:
        if reading.get(path) == value:
            reading.add(path, f"{value} is for replays: {wrong}", instead)


def _lengths_are_read(reading: Reading) -> None:
    """A prediction that nothing goes by would be a surprise; so would one of a kind that the estimate cannot be of."""
    stages, kv, preemption = reading.get(STAGES), reading.get(KV), reading.get(PREEMPTION)
    kv = Kv() if not reading.names(KV) else kv
    preemption = Preemption() if not reading.names(PREEMPTION) else preemption
    if UNSET in (stages, kv, preemption):
        return
    if not _reads_lengths(stages, kv, preemption):
        for path in (PREDICTION, (*KV, "estimate")):
            if reading.names(path):
                wrong = "nothing in this policy goes by predicted lengths"
                reading.add(
                    path, wrong, f"remove it, or use kv: {{admit: future}}, least_predicted_output, or {LENGTH_KEYS[0]}"
                )
    elif kv.estimate == "oracle" and reading.get((*PREDICTION, "kind")) not in ("oracle", UNSET):
        reading.add((*KV, "estimate"), "oracle needs prediction: {kind: oracle}", "lower, point or upper")


def _future_is_looked_at(reading: Reading) -> None:
    path: Path = (*KV, "reserve")
    kv = reading.get(KV)
    if isinstance(kv, Kv) and reading.names(path) and kv.admit != "future":
        reading.add(path, f"admit: {kv.admit} looks at no future, so reserve changes nothing", "remove it")


def _protection_has_an_effect(reading: Reading) -> None:
    path: Path = (*PREEMPTION, "protected_share")
    preemption = reading.get(PREEMPTION)
    if isinstance(preemption, Preemption) and reading.names(path) and preemption.max_per_sequence is None:
        reading.add(path, "without max_per_sequence nobody is protected", "remove it, or add max_per_sequence")


def _kind_has_what_it_needs(reading: Reading, prediction: Prediction) -> None:
    needed = NEEDED.get(prediction.kind)
    if needed is not None and not reading.names((*PREDICTION, needed)):
        reading.add((*PREDICTION, "kind"), f"{prediction.kind} has no `{needed}`", f"add `{needed}`")
    for name, kinds in OF_KIND.items():
        path = (*PREDICTION, name)
        if reading.names(path) and prediction.kind not in kinds:
            wrong = f"kind: {prediction.kind} does not read `{name}`"
            reading.add(path, wrong, f"remove it; it is for kind: {listed(kinds)}")


def _interval_is_ordered(reading: Reading, interval: Interval | None) -> None:
    if interval is None:
        return
    middle = interval.lower if interval.point is None else interval.point
    if not interval.lower <= middle <= interval.upper:
        wrong = "the bounds are not in order"
        reading.add((*PREDICTION, "interval"), wrong, "lower <= point <= upper")


def _prior_has_what_it_needs(reading: Reading, prior: Prior | None) -> None:
    if prior is None:
        return
    path: Path = (*PREDICTION, "prior")
    needed = OF_PRIOR[prior.kind]
    for name in ("mean", "median", "sigma", "values", "shares"):
        named = reading.names((*path, name))
        if name in needed and not named:
            reading.add((*path, "kind"), f"{prior.kind} has no `{name}`", f"add `{name}`")
        elif named and name not in needed and (name != "shares" or "values" not in needed):
            reading.add((*path, name), f"kind: {prior.kind} does not read `{name}`", "remove it")
    _ascends(reading, (*path, "values"), prior.values)
    if prior.kind == "two_point" and prior.values and len(prior.values) != 2:
        reading.add((*path, "values"), f"two_point has {len(prior.values)} values", "two values, or kind: empirical")
    if prior.shares and len(prior.shares) != len(prior.values):
        wrong = f"{len(prior.shares)} shares for {len(prior.values)} values"
        reading.add((*path, "shares"), wrong, "one share for each value")


def _survival_says_one_thing(reading: Reading, prediction: Prediction) -> None:
    survive, path = prediction.survive, (*PREDICTION, "survive")
    if not isinstance(survive, Survival):
        return
    if bool(survive.support) == (survive.quantile is not None):
        reading.add(path, "the rule is not one of two", "refine, {quantile: SHARE} or {support: [LENGTH, ...]}")
    elif survive.quantile is not None and prediction.prior is None:
        wrong = "a quantile of what is left needs a distribution"
        reading.add((*path, "quantile"), wrong, "kind: distribution with a `prior`, or survive: refine")
    _ascends(reading, (*path, "support"), survive.support)


def _ascends(reading: Reading, path: Path, values: tuple[int, ...]) -> None:
    if any(later <= earlier for earlier, later in pairwise(values)):
        reading.add(path, "the lengths do not ascend", "each larger than the one before")
    elif values and values[-1] > MAX_LENGTH:
        reading.add(path, f"{values[-1]} tokens are longer than any output", f"allowed: up to {MAX_LENGTH}")
