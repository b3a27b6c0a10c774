"""The in-flight window: how much released work the scheduler may hold.

Knows sizes in tokens and a count; does not know tenants or time. A request reserves its declared final size (prompt +
choices x maximum output), so that the sizes in flight never sum to more than the window: that sum is the `M` of VTC's
bound.
"""

OPEN_TOKENS = 2**62
"""A window that no size fills: only the count of requests bounds what is in flight."""


class Window:
    """Tokens and requests in flight.

    Invariants: `reserved_tokens` is the sum of the sizes taken and not given back; it passes `limit_tokens` only while
    a single request larger than the window runs alone, or after the window was made smaller.
    """

    def __init__(self) -> None:
        self.limit_tokens = 0
        self.max_requests = 1
        self.reserved_tokens = 0
        self.num_requests = 0
        self.peak_tokens = 0
        """`M` as realised: the largest `reserved_tokens` so far."""

    def fits(self, size_tokens: int) -> bool:
        """Whether a request may be released now. One larger than the window may when nothing else is in flight."""
        if self.num_requests == 0:
            return True
        return self.num_requests < self.max_requests and self.reserved_tokens + size_tokens <= self.limit_tokens

    def take(self, size_tokens: int) -> None:
        """Reserve for a released request."""
        self.num_requests += 1
        self.reserved_tokens += size_tokens
        self.peak_tokens = max(self.peak_tokens, self.reserved_tokens)

    def give_back(self, size_tokens: int) -> None:
        """A released request ended."""
        self.num_requests -= 1
        self.reserved_tokens -= size_tokens
