"""The lengths that the scheduler goes by: which predictor, which estimate of its interval, how often the bounds hold.

Owns a sequence's `predicted` and `estimate` and the counts of coverage. Does not know steps or blocks.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from msgspec import Struct

from policies.document.memory import Estimate, Prediction, PredictorKind
from policies.scheduling.lengths import fixed
from policies.scheduling.lengths.conformal import Conformal
from policies.scheduling.lengths.predicted import Emitted, Features, Predicted, Predictor
from policies.scheduling.lengths.survival import Refinement
from policies.scheduling.state import Sequence

PREDICTORS: dict[PredictorKind, Callable[[Prediction, Emitted], Predictor]] = {
    "constant": fixed.constant,
    "bucket": fixed.bucket,
    "conformal": Conformal,
    "distribution": fixed.distribution,
    "oracle": fixed.oracle,
}

ESTIMATES: dict[Estimate, Callable[[Predicted, int | None], int]] = {
    "lower": lambda predicted, _: predicted.lower,
    "point": lambda predicted, _: predicted.point,
    "upper": lambda predicted, _: predicted.upper,
    "oracle": lambda predicted, truth: predicted.upper if truth is None else truth,
}


class LengthRule(Struct, frozen=True):
    """What a policy that goes by lengths says of them."""

    prediction: Prediction
    estimate: Estimate
    refinement: Refinement


class Coverage(NamedTuple):
    """How often bounds held, of the sequences that were not cut short; intervals, tokens."""

    num_observed: int = 0
    num_above_lower: int = 0
    """Sequences at least as long as their lower bound."""
    num_below_upper: int = 0
    """Sequences no longer than their upper bound."""
    lower_tokens: int = 0
    """Sums over those observed."""
    point_tokens: int = 0
    upper_tokens: int = 0
    output_tokens: int = 0


class Lengths:
    """Prediction under one rule.

    Args:
        rule: of the policy in force.
        emitted: output tokens of a sequence so far, by its id.
    """

    def __init__(self, rule: LengthRule, emitted: Emitted) -> None:
        self.coverage = Coverage()
        self._rule = rule
        self._predictor = PREDICTORS[rule.prediction.kind](rule.prediction, emitted)

    def follow(self, rule: LengthRule) -> bool:
        """Go by a new rule with what was learnt; False if it cannot be used."""
        if rule.prediction != self._rule.prediction:
            return False
        self._rule = rule
        return True

    def begin(self, sequence: Sequence) -> None:
        """A sequence is released, or was running when this rule came."""
        features = Features(
            sequence.request.owner,
            sequence.slo_class,
            sequence.prompt_tokens,
            sequence.max_output_tokens,
            sequence.number,
            sequence.true_tokens,
        )
        sequence.predicted = self._predictor.predict(sequence.id, features)
        self.estimate(sequence)

    def estimate(self, sequence: Sequence) -> None:
        """Set a sequence's estimate anew, as the rule has it."""
        if sequence.predicted is not None:
            expected = ESTIMATES[self._rule.estimate](sequence.predicted, sequence.true_tokens)
            least = self._rule.refinement.least(sequence.kept_tokens)
            sequence.estimate = min(max(expected, least), sequence.max_output_tokens)

    def ended(self, sequence: Sequence, num_tokens: int, *, cut_short: bool) -> None:
        """A sequence ended with this many tokens; `cut_short`: not by itself nor at its limit."""
        self._predictor.observe(sequence.id, num_tokens, cut_short=cut_short)
        predicted = sequence.predicted
        if predicted is None or cut_short:
            return
        so_far = self.coverage
        self.coverage = Coverage(
            so_far.num_observed + 1,
            so_far.num_above_lower + (num_tokens >= predicted.lower),
            so_far.num_below_upper + (num_tokens <= predicted.upper),
            so_far.lower_tokens + predicted.lower,
            so_far.point_tokens + predicted.point,
            so_far.upper_tokens + predicted.upper,
            so_far.output_tokens + num_tokens,
        )


def following(
    lengths: Lengths | None, rule: LengthRule | None, sequences: Iterable[Sequence], emitted: Emitted
) -> Lengths | None:
    """Lengths under a new rule, for sequences that are there already: what was learnt is kept while the policy's
    `prediction` stays the same. None: the policy goes by no lengths.
    """
    if rule is None:
        return None
    if lengths is not None and lengths.follow(rule):
        for sequence in sequences:
            lengths.estimate(sequence)
        return lengths
    begun = Lengths(rule, emitted)
    for sequence in sequences:
        begun.begin(sequence)
    return begun


def coverage_of(lengths: Lengths | None) -> Coverage:
    """How often bounds held; nothing where none are made."""
    return Coverage() if lengths is None else lengths.coverage
