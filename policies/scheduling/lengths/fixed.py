"""Predictors that learn nothing: a constant interval, the quantiles of a prior, and the truth or what is near it.

Owns their formulas. The truth comes with a replay; documents that need it do not load in a live service.
"""

from bisect import bisect_left
from math import ceil, floor

import numpy as np

from policies.document.memory import Prediction
from policies.scheduling.lengths.predicted import Emitted, Features, Predicted, within
from policies.scheduling.lengths.priors import cumulative, quantile


class Fixed:
    """A predictor that observes nothing."""

    def observe(self, sequence: int, num_tokens: int, *, cut_short: bool) -> None:
        """Nothing follows."""


class Constant(Fixed):
    """The same interval for everybody."""

    def __init__(self, lower: float, point: float, upper: float) -> None:
        self._bounds = (lower, point, upper)

    def predict(self, sequence: int, features: Features) -> Predicted:  # noqa: ARG002  it is the same for all
        """The interval of a sequence that is released now."""
        return within(*self._bounds, features.max_output_tokens)


class Bucket(Fixed):
    """A perfect classifier: the bucket that the true length is in."""

    def __init__(self, borders: tuple[int, ...]) -> None:
        self._borders = borders

    def predict(self, sequence: int, features: Features) -> Predicted:  # noqa: ARG002
        """The interval of a sequence that is released now."""
        index = bisect_left(self._borders, _truth(features))
        lower = self._borders[index - 1] + 1 if index else 1
        upper = self._borders[index] if index < len(self._borders) else features.max_output_tokens
        return within(lower, (lower + upper) / 2, upper, features.max_output_tokens)


class Oracle(Fixed):
    """The true length, or an interval of `2 x error` times its width around it.

    A centred interval gives the truth away (its middle is it, and both ends are ordered like it); one at a random
    position, `lower = o (1 - x u)`, `upper = lower + 2 x o`, `u` uniform, does not.
    """

    def __init__(self, error: float, *, drawn: bool, seed: int) -> None:
        self._error = error
        self._drawn = drawn
        self._seed = seed

    def predict(self, sequence: int, features: Features) -> Predicted:  # noqa: ARG002
        """The interval of a sequence that is released now."""
        truth, half = _truth(features), self._error
        share = np.random.default_rng((self._seed, features.number)).random() if self._drawn and half else 1.0
        lower = max(1, floor(truth * (1 - half * share)))
        upper = max(truth, ceil(truth * (1 - half * share) + 2 * half * truth))
        return within(lower, (lower + upper) / 2, upper, features.max_output_tokens)


def _truth(features: Features) -> int:
    longest = features.max_output_tokens
    return longest if features.true_tokens is None else min(features.true_tokens, longest)


def constant(prediction: Prediction, _: Emitted) -> Constant:
    """`kind: constant`.

    Raises:
        ValueError: the section has no interval; loading refuses that.
    """
    interval = prediction.interval
    if interval is None:
        raise ValueError("prediction: kind: constant has no interval")
    middle = (interval.lower + interval.upper) / 2
    return Constant(interval.lower, middle if interval.point is None else interval.point, interval.upper)


def distribution(prediction: Prediction, _: Emitted) -> Constant:
    """`kind: distribution`.

    Raises:
        ValueError: the section has no prior; loading refuses that.
    """
    if prediction.prior is None:
        raise ValueError("prediction: kind: distribution has no prior")
    shares = cumulative(prediction.prior)
    coverage = prediction.coverage
    lower, upper = quantile(shares, 1 - coverage.lower), quantile(shares, coverage.upper)
    point = (lower + upper) / 2 if prediction.point == "midpoint" else quantile(shares, 0.5)
    return Constant(lower, point, upper)


def bucket(prediction: Prediction, _: Emitted) -> Bucket:
    """`kind: bucket`."""
    return Bucket(prediction.borders)


def oracle(prediction: Prediction, _: Emitted) -> Oracle:
    """`kind: oracle`."""
    return Oracle(prediction.error, drawn=prediction.position == "random", seed=prediction.seed)
