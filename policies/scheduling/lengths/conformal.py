"""Length intervals from experience: running quantiles, widened or narrowed so that they hold as often as promised.

Owns what is remembered of ended requests: counts alone. Quantiles are Kaplan-Meier's, because outputs that were cut
short, and those still running, are known to be longer than what there is of them; without the running ones a fresh
bucket would know only the short ones, which end first. The correction is split conformal prediction on the scores of
past intervals, at a level that follows the misses (adaptive conformal inference, Gibbs and Candes 2021).
"""

from bisect import bisect_right
from collections import OrderedDict, deque
from math import ceil, exp, inf, log

import numpy as np
from numpy.typing import NDArray

from policies.document.memory import CoverageTarget, Prediction
from policies.scheduling.lengths.predicted import Emitted, Features, Predicted, within

INFORMED = 50
"""Endings from which on a bucket answers for itself."""
REFIT = 32
"""Endings after which quantiles are taken anew."""
STEP = 0.01
"""How fast the level follows the misses."""
LEAST_LEVEL, MOST_LEVEL = 0.001, 0.5
MOST_FOLD = 2.0
"""Times the wanted share of misses that the level may come to. While lengths fall, bounds of before are too wide and
the level climbs; without this end it would still be far up when they fit again.
"""
MAX_LENGTH = 1e9
"""Stands for infinity where a logarithm is taken."""
MAX_BUCKETS = 4096
"""The one used longest ago is forgotten beyond that."""
NUM_PROMPTS = 1000
"""Prompts that the deciles are taken of, again after as many."""
FIRST_PROMPTS = 100

Key = tuple[str | int, ...]


class Margin:
    """What to add to a bound's logarithm, so that it holds as often as it should.

    Args:
        target: share of bounds that hold.
    """

    __slots__ = ("_ascending", "_level", "_target")

    def __init__(self, target: float) -> None:
        self._target = target
        self._level = 1 - target
        self._ascending: list[float] = []

    def value(self) -> float:
        """The score that as few as wanted are above."""
        count = len(self._ascending)
        if not count:
            return 0.0
        rank = ceil((count + 1) * (1 - self._level))
        return self._ascending[min(rank, count) - 1]

    def replace(self, scores: NDArray[np.float64]) -> None:
        """The bound is another: by how much each length remembered passes it, in logarithms."""
        self._ascending = np.sort(scores).tolist()

    def follow(self, *, missed: bool) -> None:
        """A bound that was promised held, or was missed."""
        wanted = 1 - self._target
        most = min(MOST_FOLD * wanted, MOST_LEVEL)
        self._level = min(max(self._level + STEP * (wanted - missed), LEAST_LEVEL), most)


class _Bucket:
    """Requests of one kind. Endings are kept in a ring; what follows from them is worked out when somebody asks."""

    __slots__ = (
        "_longest",
        "_lower",
        "_num_ended",
        "_num_fitted",
        "_point",
        "_quantiles",
        "_tokens",
        "_upper",
        "running",
    )

    def __init__(self, window: int, coverage: CoverageTarget) -> None:
        self._tokens = np.zeros(window, np.int64)
        self._longest = np.zeros(window, np.int64)
        """What was asked for at most; 0: it was cut short."""
        self._num_ended = self._num_fitted = 0
        self._quantiles = (1 - coverage.lower, 0.5, coverage.upper)
        self._point = (1.0, inf, inf)
        self._lower, self._upper = Margin(coverage.lower), Margin(coverage.upper)
        self.running: dict[int, None] = {}

    @property
    def is_informed(self) -> bool:
        """Whether enough has ended to go by."""
        return self._num_ended >= INFORMED

    def predict(self, longest: int, emitted: Emitted, *, midpoint: bool) -> Predicted:
        """An interval up to what is asked for at most."""
        if self._num_ended - self._num_fitted >= REFIT or not self._num_fitted:
            self._fit(emitted)
        lower, point, upper = self._point
        low, high = lower * exp(-self._lower.value()), upper * exp(self._upper.value())
        return within(low, (low + min(high, longest)) / 2 if midpoint else point, high, longest)

    def observe(self, num_tokens: int, longest: int, said: Predicted | None, *, cut_short: bool) -> None:
        """A request ended, of which it said this."""
        place = self._num_ended % len(self._tokens)
        self._tokens[place] = num_tokens
        self._longest[place] = 0 if cut_short else longest
        self._num_ended += 1
        if said is not None and not cut_short:
            self._lower.follow(missed=num_tokens < said.lower)
            self._upper.follow(missed=num_tokens > said.upper)

    def _fit(self, emitted: Emitted) -> None:
        num = min(self._num_ended, len(self._tokens))
        ended, longest = self._tokens[:num], self._longest[:num]
        so_far = [emitted(sequence) for sequence in self.running]
        tokens = np.concatenate((ended, np.array(so_far, np.int64)))
        whole = np.zeros(len(tokens), np.bool_)
        whole[:num] = ended < longest
        lower, point, upper = survival_quantiles(tokens, whole, self._quantiles)
        lower = max(lower, 1.0)
        self._point = (lower, point, upper)
        self._num_fitted = self._num_ended
        scored = longest > 0
        asked, logs = longest[scored], np.log(np.maximum(ended[scored], 1))
        self._lower.replace(np.log(np.minimum(lower, asked)) - logs)
        # A bound at what was asked for at most cannot be passed: there is nothing to correct.
        self._upper.replace(np.where(upper >= asked, 0.0, logs - log(min(upper, MAX_LENGTH))))


def survival_quantiles(
    tokens: NDArray[np.int64], whole: NDArray[np.bool_], wanted: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Kaplan-Meier quantiles of lengths, of which some are known only to be longer than what was seen of them.

    Args:
        tokens: what was seen, `(n,)`, n > 0.
        whole: whether that was all, `(n,)`.
        wanted: ascending shares.

    Returns:
        The smallest length that is not exceeded by each share; where that was never seen, the largest length seen, and
        for the last share infinity.
    """
    order = np.lexsort((~whole, tokens))  # of equal lengths those that end there come first
    at_risk = np.arange(len(tokens), 0, -1)
    reached = 1.0 - np.cumprod(1.0 - whole[order] / at_risk)
    indices = np.searchsorted(reached, np.array(wanted) - 1e-12)
    ascending = tokens[order]
    lower, point, upper = (float(ascending[i]) if i < len(ascending) else inf for i in indices.tolist())
    longest = float(ascending[-1])
    return min(lower, longest), min(point, longest), upper


class _Deciles:
    """In which tenth of recent prompts a prompt is, by length."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=NUM_PROMPTS)
        self._borders: list[float] = []
        self._due_in = FIRST_PROMPTS

    def of(self, prompt_tokens: int) -> int:
        """0 to 9; 0 until enough prompts were seen."""
        self._recent.append(prompt_tokens)
        self._due_in -= 1
        if not self._due_in:
            self._borders = np.quantile(np.array(self._recent), np.arange(1, 10) / 10).tolist()
            self._due_in = NUM_PROMPTS
        return bisect_right(self._borders, prompt_tokens)


class Conformal:
    """Intervals by tenant, class and decile of prompt length; by tenant and class, or all together, where fewer than
    50 requests of that kind have ended.
    """

    def __init__(self, prediction: Prediction, emitted: Emitted) -> None:
        self._coverage = prediction.coverage
        self._window = prediction.window
        self._midpoint = prediction.point == "midpoint"
        self._emitted = emitted
        self._deciles = _Deciles()
        self._everybody = _Bucket(self._window, self._coverage)
        self._buckets: OrderedDict[Key, _Bucket] = OrderedDict()
        self._open: dict[int, tuple[int, tuple[_Bucket, ...], _Bucket | None, Predicted]] = {}
        """By sequence: what it asked for at most, its buckets, the one that answered, and its answer."""

    def predict(self, sequence: int, features: Features) -> Predicted:
        """The interval of a sequence that is released now."""
        kind = (features.tenant, features.slo_class)
        decile = self._deciles.of(features.prompt_tokens)
        longest = features.max_output_tokens
        buckets = (self._bucket((*kind, decile)), self._bucket(kind), self._everybody)
        informed = next((bucket for bucket in buckets if bucket.is_informed), None)
        if informed is not None:
            said = informed.predict(longest, self._emitted, midpoint=self._midpoint)
        else:  # nothing is known: any length may come
            said = within(1, (1 + longest) / 2 if self._midpoint else longest, longest, longest)
        for bucket in buckets:
            bucket.running[sequence] = None
        self._open[sequence] = (longest, buckets, informed, said)
        return said

    def observe(self, sequence: int, num_tokens: int, *, cut_short: bool) -> None:
        """A sequence ended with this many tokens."""
        opened = self._open.pop(sequence, None)
        if opened is None:
            return
        longest, buckets, informed, said = opened
        for bucket in buckets:
            del bucket.running[sequence]
            bucket.observe(num_tokens, longest, said if bucket is informed else None, cut_short=cut_short)

    def forget(self, sequence: int) -> None:
        """A sequence will never run: nothing is learnt from it."""
        opened = self._open.pop(sequence, None)
        if opened is not None:
            for bucket in opened[1]:
                del bucket.running[sequence]

    def _bucket(self, key: Key) -> _Bucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(self._window, self._coverage)
            if len(self._buckets) > MAX_BUCKETS:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return bucket
