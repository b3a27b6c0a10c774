"""The sections of KV memory and prediction in words: a part of `explain.py`."""

from policies.document.memory import Estimate, Prediction, Survival, VictimKind
from policies.document.memory_rules import goes_by_lengths
from policies.document.schema import Policy
from policies.document.words import listed

VICTIMS: dict[VictimKind, str] = {
    "newest_started_prefill": "the newest unfinished prompt",
    "newest": "the newest sequence",
    "newest_decode": "the newest decode",
    "least_predicted_output": "the sequence with the shortest predicted output",
    "self": "the one that needs the block",
}
SHARES = {
    "tenant": "Requests of a tenant that begin alike share the KV of what they have in common.",
    "all": "Requests that begin alike share the KV of what they have in common, whoever sent them.",
    "none": "No KV is shared: every prompt is computed, also where it repeats an earlier one.",
}
ESTIMATES: dict[Estimate, str] = {
    "lower": "the lower bound",
    "point": "the middle",
    "upper": "the upper bound",
    "oracle": "the true length",
}


def memory_in_words(policy: Policy) -> list[str]:
    """What happens to KV memory, one sentence a line."""
    kv, preemption = policy.kv, policy.preemption
    victims = ", else ".join(VICTIMS[victim] for victim in preemption.victim)
    held = "the longest it may become" if kv.admit == "max_length" else "its whole prompt"
    resumed = "recomputed later" if preemption.resume == "keep_tokens" else "begins again later"
    lines = [f"A sequence starts when there are blocks for {held} and {kv.watermark:.1%} of the pool stay free."]
    if kv.admit == "future":
        lines.append(
            "It starts only if all that run and itself would fit to their predicted ends into "
            f"{1 - kv.reserve:.0%} of the pool."
        )
    if kv.headroom is not None:
        more, short = f"{kv.headroom.share:.1%}", kv.headroom.prompt_tokens
        lines.append(f"With more than {short} tokens to prefill, it leaves another {more} of the pool to shorter ones.")
    lines.append(SHARES[kv.share])
    lines.append(f"When a decode finds no free block, {victims} gives its blocks back and is {resumed}.")
    if preemption.requeue == "ordered":
        lines.append("Who gave its blocks back waits among the others, in their order.")
    if preemption.max_per_sequence is not None:
        lines.append(
            f"Who gave them back {preemption.max_per_sequence} times, or had aged when it started, is spared while "
            f"others are left; so is the oldest. Together they may reach {preemption.protected_share:.0%} of the pool."
        )
    return lines


def prediction_in_words(policy: Policy) -> list[str]:
    """How long outputs are expected to be, one sentence a line; empty where nothing goes by it."""
    if not goes_by_lengths(policy):
        return []
    prediction = policy.prediction
    lines = [_kind(prediction), f"The policy goes by {ESTIMATES[policy.kv.estimate]} of it."]
    survive = prediction.survive
    if not isinstance(survive, Survival):
        lines.append("Whoever has produced more is expected to end with the next token.")
    elif survive.support:
        lengths = listed(survive.support)
        lines.append(
            f"Whoever outlives one of {lengths} tokens gives its blocks back and waits as the next longer one."
        )
    else:
        lines.append(f"Whoever goes on is expected to end at the {survive.quantile:.0%} quantile of what is left.")
    return lines


def _kind(prediction: Prediction) -> str:
    coverage = prediction.coverage
    match prediction.kind:
        case "conformal":
            return (
                "An interval for each output, from what the tenant's requests of this class and prompt length came to:"
                f" {coverage.lower:.0%} end above its lower bound, {coverage.upper:.0%} below its upper bound."
            )
        case "constant":
            interval = prediction.interval
            bounds = "" if interval is None else f"{interval.lower} to {interval.upper} "
            return f"The same interval for every output: {bounds}tokens."
        case "distribution":
            prior = "" if prediction.prior is None else prediction.prior.kind
            return f"The same interval for every output: quantiles of a {prior} distribution."
        case "bucket":
            return f"The bucket that the true length is in; the borders are {listed(prediction.borders)} tokens."
        case "oracle":
            around = f", {prediction.error:.0%} around it" if prediction.error else ""
            return f"The true length of each output{around}."
