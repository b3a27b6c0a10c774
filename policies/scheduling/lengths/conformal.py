"""Length intervals from experience: running quantiles, widened or narrowed so that they hold as often as promised.

Owns what is remembered of ended requests: counts alone. Quantiles are Kaplan-Meier's, because outputs that were cut
short, and those still running, are known to be longer than what there is of them; without the running ones a fresh
bucket would know only the short ones, which end first. The correction is split conformal prediction on the scores of
past intervals, at a level that follows the misses (adaptive conformal inference, Gibbs and Candes 2021).
"""

from bisect import bisect_left, bisect_right, insort
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


class Scores:
    """By how much lengths pass one bound, in logarithms; and the level that keeps that as rare as wanted.

    Args:
        target: share of bounds that hold.
        window: scores remembered.
    """

    __slots__ = ("_ascending", "_level", "_recent", "_target", "_window")

    def __init__(self, target: float, window: int) -> None:
        self._target = target
        self._window = window
        self._level = 1 - target
        self._recent: deque[float] = deque()
        self._ascending: list[float] = []

    def margin(self) -> float:
        """What to add to a bound's logarithm."""
        count = len(self._ascending)
        if not count:
            return 0.0
        rank = ceil((count + 1) * (1 - self._level))
        return self._ascending[min(rank, count) - 1]

    def add(self, score: float) -> None:
        """A length is known."""
        if len(self._recent) == self._window:
            del self._ascending[bisect_left(self._ascending, self._recent.popleft())]
        self._recent.append(score)
        insort(self._ascending, score)

    def replace(self, scores: list[float]) -> None:
        """The bound is another: these are the scores of the lengths remembered, oldest first."""
        self._recent = deque(scores)
        self._ascending = sorted(scores)

    def follow(self, *, missed: bool) -> None:
        """A bound that was promised held, or was missed."""
        wanted = 1 - self._target
        most = min(MOST_FOLD * wanted, MOST_LEVEL)
        self._level = min(max(self._level + STEP * (wanted - missed), LEAST_LEVEL), most)


class _Bucket:
    """Requests of one kind."""

    __slots__ = ("_ended", "_lower", "_num_new", "_quantiles", "_scored", "_upper", "_wanted", "running")

    def __init__(self, coverage: CoverageTarget, window: int) -> None:
        self._wanted = (1 - coverage.lower, 0.5, coverage.upper)
        self._ended: deque[tuple[int, bool]] = deque(maxlen=window)
        """Tokens, and whether there were no more to come."""
        self._scored: deque[tuple[int, int]] = deque(maxlen=window)
        """Of those that nobody cut short: tokens, and what was asked for at most."""
        self._lower = Scores(coverage.lower, window)
        self._upper = Scores(coverage.upper, window)
        self._quantiles: tuple[float, float, float] | None = None
        self._num_new = 0
        self.running: dict[int, None] = {}

    def predict(self, longest: int, emitted: Emitted, *, midpoint: bool) -> Predicted | None:
        """An interval up to what is asked for at most; None if too few have ended to go by."""
        if len(self._ended) < INFORMED:
            return None
        if self._quantiles is None or self._num_new >= REFIT:
            self._fit(emitted)
        lower, point, upper = self._quantiles or (1.0, inf, inf)
        low, high = lower * exp(-self._lower.margin()), upper * exp(self._upper.margin())
        return within(low, (low + min(high, longest)) / 2 if midpoint else point, high, longest)

    def observe(self, num_tokens: int, longest: int, said: Predicted | None, *, cut_short: bool) -> None:
        """A request ended, of which this was said."""
        self._ended.append((num_tokens, not cut_short and num_tokens < longest))
        self._num_new += 1
        if cut_short:
            return
        self._scored.append((num_tokens, longest))
        if self._quantiles is not None:
            lower, _, upper = self._quantiles
            tokens = log(max(num_tokens, 1))
            self._lower.add(log(min(lower, longest)) - tokens)
            # A bound at what was asked for at most cannot be passed: there is nothing to correct.
            self._upper.add(0.0 if upper >= longest else tokens - log(upper))
        if said is not None:
            self._lower.follow(missed=num_tokens < said.lower)
            self._upper.follow(missed=num_tokens > said.upper)

    def _fit(self, emitted: Emitted) -> None:
        so_far = [emitted(sequence) for sequence in self.running]
        tokens = np.array([tokens for tokens, _ in self._ended] + so_far)
        whole = np.array([whole for _, whole in self._ended] + [False] * len(so_far))
        lower, point, upper = survival_quantiles(tokens, whole, self._wanted)
        self._quantiles = (max(lower, 1.0), point, upper)
        self._num_new = 0
        if self._scored:
            ended, longest = np.array(self._scored, np.float64).T
            logs = np.log(np.maximum(ended, 1))
            self._lower.replace((np.log(np.minimum(max(lower, 1.0), longest)) - logs).tolist())
            self._upper.replace(np.where(upper >= longest, 0.0, logs - log(min(upper, MAX_LENGTH))).tolist())


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
        self._everybody = _Bucket(self._coverage, self._window)
        self._buckets: OrderedDict[Key, _Bucket] = OrderedDict()
        self._open: dict[int, tuple[int, list[tuple[_Bucket, Predicted | None]]]] = {}
        """By sequence: what it asked for at most, and what each of its buckets said."""

    def predict(self, sequence: int, features: Features) -> Predicted:
        """The interval of a sequence that is released now."""
        kind = (features.tenant, features.slo_class)
        decile = self._deciles.of(features.prompt_tokens)
        chosen: Predicted | None = None
        longest = features.max_output_tokens
        made: list[tuple[_Bucket, Predicted | None]] = []
        for bucket in (self._bucket((*kind, decile)), self._bucket(kind), self._everybody):
            said = bucket.predict(longest, self._emitted, midpoint=self._midpoint)
            chosen = said if chosen is None else chosen
            bucket.running[sequence] = None
            made.append((bucket, said))
        self._open[sequence] = (longest, made)
        if chosen is None:  # nothing is known: any length may come
            return within(1, (1 + longest) / 2 if self._midpoint else longest, longest, longest)
        return chosen

    def observe(self, sequence: int, num_tokens: int, *, cut_short: bool) -> None:
        """A sequence ended with this many tokens."""
        longest, made = self._open.pop(sequence, (0, []))
        for bucket, said in made:
            bucket.running.pop(sequence, None)
            bucket.observe(num_tokens, longest, said, cut_short=cut_short)

    def _bucket(self, key: Key) -> _Bucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(self._coverage, self._window)
            if len(self._buckets) > MAX_BUCKETS:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return bucket
