"""The in-flight window: how much released work the scheduler may hold, and how large it really was.

Knows sizes in tokens and a count; does not know tenants or time. A request reserves the final size that it is expected
to have; where it outgrows that, the window grows past its limit rather than cut a stream.

The `M` of VTC's bound is the largest sum, at any release, of the final sizes of what is in flight then. A request that
grows adds to that sum at every release since its own; the places keep those sums as differences, so that a token costs
one addition.
"""

OPEN_TOKENS = 2**62
"""A window that no size fills: only the count of requests bounds what is in flight."""


class Place:
    """What one released request takes of the window, and the releases since then as far as their own requests ended."""

    __slots__ = ("after", "before", "best", "rise", "size_tokens", "tail")

    def __init__(self, size_tokens: int, rise: int) -> None:
        self.size_tokens = size_tokens
        self.rise = rise
        """The sum of final sizes at its release, less that at the release before."""
        self.tail = 0
        """How much the sum changed over the releases after it whose requests ended, up to the next in flight."""
        self.best = 0
        """The largest such change on the way."""
        self.before: Place | None = None
        self.after: Place | None = None


class Window:
    """Tokens and requests in flight.

    Invariants: `reserved_tokens` is the sum of the sizes taken and not given back; it passes `limit_tokens` only while
    a single request larger than the window runs alone, after requests outgrew what they were expected to take, or
    after the window was made smaller.
    """

    def __init__(self) -> None:
        self.limit_tokens = 0
        self.max_requests = 1
        self.reserved_tokens = 0
        self.num_requests = 0
        self._first = self._last = Place(0, 0)
        self._sum_tokens = 0
        """Of final sizes at the last release, as far as they are known."""
        self._peak_tokens = 0
        self._grew = False

    @property
    def peak_tokens(self) -> int:
        """`M` as realised so far; O(in flight) after a request outgrew its size, else O(1)."""
        if self._grew:
            self._grew = False
            self._peak_tokens = max(self._peak_tokens, self._largest_sum())
        return self._peak_tokens

    def fits(self, size_tokens: int) -> bool:
        """Whether a request may be released now. One larger than the window may when nothing else is in flight."""
        if self.num_requests == 0:
            return True
        return self.num_requests < self.max_requests and self.reserved_tokens + size_tokens <= self.limit_tokens

    def take(self, size_tokens: int) -> Place:
        """Reserve for a released request."""
        self.num_requests += 1
        self.reserved_tokens += size_tokens
        place = Place(size_tokens, self.reserved_tokens - self._sum_tokens)
        self._sum_tokens = self.reserved_tokens
        place.before, self._last.after = self._last, place
        self._last = place
        self._peak_tokens = max(self._peak_tokens, self.reserved_tokens)
        return place

    def grow(self, place: Place, num_tokens: int) -> None:
        """A request in flight is larger than it was expected to be."""
        place.size_tokens += num_tokens
        place.rise += num_tokens
        self.reserved_tokens += num_tokens
        self._sum_tokens += num_tokens
        self._grew = True

    def give_back(self, place: Place) -> None:
        """A released request ended."""
        self.num_requests -= 1
        self.reserved_tokens -= place.size_tokens
        before, after = place.before, place.after
        if before is None:
            raise ValueError("what was given back is no place in this window")
        before.best = max(before.best, before.tail + place.rise + place.best)
        before.tail += place.rise + place.tail
        before.after = after
        if after is None:
            self._last = before
        else:
            after.before = before
        place.before = place.after = None

    def _largest_sum(self) -> int:
        largest = total = 0
        place: Place | None = self._first
        while place is not None:
            total += place.rise
            largest = max(largest, total + place.best)
            total += place.tail
            place = place.after
        return largest


def share(tokens: int, num_admissions: int) -> int:
    """What each of so many processes has of a window: an open one is open for all."""
    return tokens if tokens >= OPEN_TOKENS else tokens // num_admissions
