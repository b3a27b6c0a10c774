"""Distributions of output lengths, as cumulative shares over lengths 1, 2, 3 and so on.

Owns their formulas. Knows no request.
"""

from math import erf, log, sqrt

import numpy as np
from numpy.typing import NDArray

from policies.document.memory import Prior

Shares = NDArray[np.float64]
"""Entry `k - 1`: share of outputs of at most `k` tokens; ascending, the last is 1."""
LONGEST = 65_536
"""Tokens; what is longer counts as this long."""
NEGLIGIBLE = 1e-9


def cumulative(prior: Prior) -> Shares:
    """The shares of a prior.

    Raises:
        ValueError: a parameter that its kind needs is missing; loading refuses such a prior.
    """
    match prior.kind:
        case "lognormal":
            return _lognormal(_given(prior.median, "median"), _given(prior.sigma, "sigma"))
        case "geometric":
            longer: Shares = (1 - 1 / _given(prior.mean, "mean")) ** np.arange(1.0, LONGEST + 1)
            return _ended(1 - longer)
        case "linear_geometric":
            mean = _given(prior.mean, "mean")
            ratio = (mean - 1) / (mean + 1)  # the mean of a chance in proportion to k r^k is (1 + r) / (1 - r)
            lengths = np.arange(1, LONGEST + 1)
            chances = lengths * ratio**lengths
            return _ended(np.cumsum(chances) / chances.sum())
        case "two_point" | "empirical":
            chances = np.zeros(max(prior.values, default=1))
            chances[np.array(prior.values, np.intp) - 1] = prior.shares or 1.0
            return _ended(np.cumsum(chances) / chances.sum())


def _given(value: float | None, name: str) -> float:
    if value is None:
        raise ValueError(f"prediction.prior has no {name}")
    return value


def _lognormal(median: float, sigma: float) -> Shares:
    # Lengths are whole: everything up to half a token above counts.
    logs = (np.log(np.arange(1, LONGEST + 1) + 0.5) - log(median)) / (sigma * sqrt(2))
    return _ended(np.array([0.5 * (1 + erf(x)) for x in logs.tolist()]))


def _ended(shares: Shares) -> Shares:
    """Without the end that makes no difference."""
    end = int(np.searchsorted(shares, 1 - NEGLIGIBLE)) + 1
    cut = shares[:end].copy()
    cut[-1] = 1.0
    return cut


def quantile(shares: Shares, share: float) -> int:
    """The smallest length that at least this share of outputs does not exceed."""
    return min(int(np.searchsorted(shares, share - NEGLIGIBLE)), len(shares) - 1) + 1
