"""Lengths with the statistics of the SLAI paper's trace (scheduling specification, section 9), for those without it.

Owns two inverse distribution functions. Knows nothing of arrivals or classes.
"""

import numpy as np
from numpy.typing import NDArray

NUM_ROWS = 30_731
LONGEST_TOKENS = 8192
"""Prompt and output together."""

PROMPT_QUANTILES = (
    *((0.0, 4), (0.05, 29), (0.10, 74), (0.233, 512), (0.25, 580), (0.362, 1024), (0.50, 1730), (0.548, 2048)),
    *((0.75, 3734.5), (0.785, 4096), (0.90, 5696), (0.95, 6563), (0.99, 7434), (1.0, 8141)),
)
"""(share of the rows, tokens that they have at most); straight lines in between."""
OUTPUT_QUANTILES = (
    *((0.0, 1), (0.05, 44), (0.10, 84), (0.25, 228), (0.50, 415), (0.75, 628), (0.90, 834), (0.95, 920)),
    *((0.99, 998), (1.0, 1024)),
)


def sharegpt_lengths(seed: int, num_rows: int = NUM_ROWS) -> list[tuple[int, int]]:
    """(prompt, output) tokens, drawn independently (in the trace they correlate by 0.04); an output ends where the
    conversation would pass 8192 tokens.
    """
    generator = np.random.default_rng(seed)
    prompts = lengths_at(PROMPT_QUANTILES, generator.random(num_rows))
    outputs = np.minimum(lengths_at(OUTPUT_QUANTILES, generator.random(num_rows)), LONGEST_TOKENS - prompts)
    return list(zip(prompts.tolist(), outputs.tolist(), strict=True))


def lengths_at(quantiles: tuple[tuple[float, float], ...], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """Tokens at shares of a distribution given as (share, tokens that so many have at most); straight lines between."""
    shares, tokens = zip(*quantiles, strict=True)
    drawn: NDArray[np.int64] = np.rint(np.interp(uniform, shares, tokens)).astype(np.int64)
    return drawn
