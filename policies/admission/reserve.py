"""How much of the window a request takes (`fairness.reserve`).

Owns the three rules. Knows sizes and what is in flight; does not know tenants or time.
"""

from collections.abc import Iterable
from typing import Protocol

from policies.admission.ledger import Charge
from policies.admission.nodes import Queued
from policies.admission.window import Window


class Reserve(Protocol):
    """A rule of `fairness.reserve`."""

    def size_tokens(self, queued: Queued, predicted_tokens: int) -> int:
        """What a request reserves at its release, where an output of `predicted_tokens` is charged at once."""

    def fits(self, window: Window, in_flight: Iterable[Charge], queued: Queued, size_tokens: int) -> bool:
        """Whether it may be released now."""


class ByDeclared:
    """`declared`: prompt and maximum output, or the prediction where that is more: the window never overflows."""

    def size_tokens(self, queued: Queued, predicted_tokens: int) -> int:
        """Its largest final size."""
        return queued.prompt_tokens + max(queued.expected_tokens, predicted_tokens)

    def fits(self, window: Window, in_flight: Iterable[Charge], queued: Queued, size_tokens: int) -> bool:  # noqa: ARG002
        """Within the window."""
        return window.fits(size_tokens)


class ByPrediction:
    """`predicted`: prompt and predicted output; the window grows with whatever outlives its prediction."""

    def size_tokens(self, queued: Queued, predicted_tokens: int) -> int:
        """Its predicted final size."""
        return queued.prompt_tokens + predicted_tokens

    def fits(self, window: Window, in_flight: Iterable[Charge], queued: Queued, size_tokens: int) -> bool:  # noqa: ARG002
        """Within the window."""
        return window.fits(size_tokens)


class ByOccupancy:
    """`occupancy`: the largest number of tokens that all of them are ever going to hold together must be below the
    window (the test of VTC's authors, who know the true lengths). Sorted by what is still to come, the most first, the
    i-th ends when i are left: `remaining_i x i` tokens more than the first i hold now. Each counts as after its prompt,
    with a token made; the last token of an output is never held, because nothing is computed from it.
    """

    def size_tokens(self, queued: Queued, predicted_tokens: int) -> int:  # noqa: ARG002
        """Its true final size: the window's limit does not bind, but its peak is the `M` of the bound."""
        return queued.prompt_tokens + queued.true_tokens

    def fits(self, window: Window, in_flight: Iterable[Charge], queued: Queued, size_tokens: int) -> bool:  # noqa: ARG002
        """Below the window at the peak; alone in any case."""
        if not window.num_requests:
            return True
        if window.num_requests >= window.max_requests:
            return False
        rows = [_occupancy(one.prompt_tokens, one.output_tokens, one.true_tokens) for one in in_flight]
        rows.append(_occupancy(queued.prompt_tokens, 0, queued.true_tokens))
        rows.sort(reverse=True)
        held, limit = 0, window.limit_tokens
        for number, (remaining, holds) in enumerate(rows, start=1):
            held += holds
            if remaining * number + held >= limit:
                return False
        return True


def _occupancy(prompt_tokens: int, output_tokens: int, true_tokens: int) -> tuple[int, int]:
    """Tokens that a request will hold beside those that it holds, and these."""
    made = max(output_tokens, 1)
    return max(true_tokens - made - 1, 0), prompt_tokens + made


RESERVES: dict[str, Reserve] = {"declared": ByDeclared(), "predicted": ByPrediction(), "occupancy": ByOccupancy()}
"""`fairness.reserve`."""
