"""What a step holds, as far as its duration goes.

Owns the counts that a step's time is explained by, and how they are read from a plan. Knows no device and no time.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from policies.commands import StepPlan


class StepShape(NamedTuple):
    """Counts of a step. What a reader of stored shapes may lack comes last, with a default."""

    prefill_tokens: int
    decodes: int
    context_tokens: int
    """Tokens in KV that the decodes read, summed."""
    num_prefills: int = 0
    """Sequences that compute prompt tokens."""
    prefill_pairs: float = 0.0
    """Query-key pairs of their attention: `q * (k + q / 2)` summed, q new tokens behind k in KV."""

    @property
    def num_tokens(self) -> int:
        """Tokens through the linear layers."""
        return self.prefill_tokens + self.decodes


def shape_of(plan: StepPlan) -> StepShape:
    """The counts of a plan. A last chunk of a single token counts as a decode: both read their context and sample."""
    num_tokens = int(plan.num_tokens.sum())
    num_decodes = len(plan.sequences)
    if num_tokens == num_decodes and plan.samples.all():
        return StepShape(0, num_decodes, int(plan.positions.sum()) + num_decodes)
    decodes: NDArray[np.bool_] = plan.samples & (plan.num_tokens == 1)
    num_decodes = int(np.count_nonzero(decodes))
    context_tokens = int(plan.positions[decodes].sum()) + num_decodes
    chunks = ~decodes
    queries = plan.num_tokens[chunks].astype(np.float64)
    pairs = float(queries @ (plan.positions[chunks] + queries / 2))
    return StepShape(num_tokens - num_decodes, num_decodes, context_tokens, len(queries), pairs)
