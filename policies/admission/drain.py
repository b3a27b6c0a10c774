"""How fast the system serves, and so how long a client should stay away.

Knows cost and time; does not know tenants or queues.
"""

SAMPLE_S = 1.0
NEWEST_SHARE = 0.3
LONGEST_RETRY_S = 600.0


class ServiceRate:
    """Cost served per second while something was in flight: an exponentially weighted mean over samples of a second."""

    def __init__(self) -> None:
        self.per_s = 0.0
        """0 until the first sample is complete."""
        self._since_s = 0.0
        self._cost = 0.0

    def begin(self, now: float) -> None:
        """Work starts after an idle time: idle seconds say nothing about speed."""
        self._since_s, self._cost = now, 0.0

    def add(self, cost: float, now: float) -> None:
        """Cost charged since the last call."""
        self._cost += cost
        elapsed = now - self._since_s
        if elapsed >= SAMPLE_S:
            sample = self._cost / elapsed
            self.per_s += (NEWEST_SHARE if self.per_s else 1.0) * (sample - self.per_s)
            self._since_s, self._cost = now, 0.0

    def time_for_s(self, cost: float) -> float | None:
        """Seconds that it takes to serve this; None: nothing has been served yet."""
        return cost / self.per_s if self.per_s else None

    def retry_after_s(self, cost_ahead: float, request: int) -> float:
        """Seconds until `cost_ahead` is served, at least 1, plus up to 20 % so that clients do not return together.

        The jitter follows the request id: the same run refuses with the same numbers.
        """
        estimate = self.time_for_s(cost_ahead) or 1.0
        return round(min(max(estimate, 1.0) * jitter(request), LONGEST_RETRY_S), 3)


def jitter(request: int) -> float:
    """1 to 1.2, by a hash of the request id."""
    return 1.0 + 0.2 * (request * 2654435761 % 2**32) / 2**32
