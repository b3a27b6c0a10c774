"""What it says of an output's length that it has come this far.

Owns the estimate of a sequence that has produced some tokens (prediction specification, section 4). The estimate made
at its start is its own; how it rises is the same for all.
"""

import numpy as np
from numpy.typing import NDArray

from policies.document.memory import Prediction, Survival
from policies.scheduling.lengths.priors import NEGLIGIBLE, cumulative


class Refinement:
    """Estimates that rise with what has been produced.

    Attributes:
        preempts: whoever's estimate rises gives its blocks back at once and waits as what it has turned out to be.
    """

    def __init__(self, expected: NDArray[np.int32], *, preempts: bool) -> None:
        """`expected`: entry `a` is the least estimate of an output of which there are `a` tokens; beyond it, `a`."""
        self._expected = expected
        self.preempts = preempts

    def least(self, num_tokens: int) -> int:
        """The least estimate of a sequence that has produced so many tokens."""
        if num_tokens < len(self._expected):
            return max(int(self._expected[num_tokens]), num_tokens)
        return num_tokens

    def raised(self, estimates: NDArray[np.int32], num_tokens: NDArray[np.int32]) -> NDArray[np.int32]:
        """Estimates of sequences that have produced so many tokens, both int32 of one shape; negative where one has
        none yet.
        """
        estimates = np.maximum(estimates, num_tokens)
        if len(self._expected):
            last = len(self._expected) - 1
            known = np.where(num_tokens <= last, self._expected[num_tokens.clip(0, last)], 0)
            estimates = np.maximum(estimates, known)
        return estimates


def refinement(prediction: Prediction) -> Refinement:
    """What `prediction.survive` says."""
    survive = prediction.survive
    if not isinstance(survive, Survival):
        return Refinement(np.zeros(0, np.int32), preempts=False)
    if survive.support:
        support = np.array(survive.support, np.int32)
        # Whoever has produced one of these lengths and goes on must come to the next.
        produced = np.arange(support[-1])
        return Refinement(support[np.searchsorted(support, produced, side="right")], preempts=True)
    if survive.quantile is None or prediction.prior is None:
        return Refinement(np.zeros(0, np.int32), preempts=False)
    shares = cumulative(prediction.prior)
    reached = np.concatenate(([0.0], shares[:-1]))
    wanted = reached + survive.quantile * (1 - reached)
    expected = np.minimum(np.searchsorted(shares, wanted - NEGLIGIBLE), len(shares) - 1) + 1
    return Refinement(expected.astype(np.int32), preempts=False)
