"""How much of one limit is left, by four rules (fairness specification, 7.1 and 7.2).

Knows amounts and times; does not know whose the limit is or which others apply. Times are whole nanoseconds that never
go backwards. Nothing is rounded: with `limit` tokens in `period_ns`, a token is `period_ns` units and a nanosecond
brings `limit` of them, so every rate is exact in integers.
"""

from collections import deque
from typing import Any, Protocol

NS_PER_S = 10**9


class Meter(Protocol):
    """What is taken of one limit."""

    limit: int
    burst: int

    def resize(self, limit: int, burst: int, now_ns: int) -> None:
        """The limit has this size from now on; what is taken stays taken."""

    def wait_ns(self, amount: int, now_ns: int) -> int | None:
        """0: `amount` may be taken now. Else until when, if nobody takes more; None: nobody knows."""

    def take(self, request: int, amount: int, now_ns: int) -> None:
        """A request takes an amount, allowed or not."""

    def correct(self, request: int, taken: int, actual: int, now_ns: int) -> None:
        """What was taken as one amount is really another; more than allowed becomes a debt, less never a credit."""

    def left(self, now_ns: int) -> int:
        """Whole units that may be taken now."""

    def used(self, now_ns: int) -> int:
        """Units taken and not back yet, any fraction as a whole one."""

    def full_in_ns(self, now_ns: int) -> int:
        """Until nothing is taken, if nobody takes more."""

    def state(self) -> list[Any]:
        """What `restore` needs, in plain values."""

    def restore(self, state: list[Any], shift_ns: int) -> None:
        """Go on from a `state` whose times are all moved by so much."""


class Gcra:
    """Generic cell rate algorithm: one number, the time at which all that was taken is back.

    Decides as `TokenBucket` does.
    """

    def __init__(self, limit: int, burst: int, period_ns: int) -> None:
        self.limit = limit
        self.burst = burst
        self.period_ns = period_ns
        self._back_at = 0
        """Theoretical arrival time, in nanoseconds times `limit`."""

    def resize(self, limit: int, burst: int, now_ns: int) -> None:
        """As `Meter.resize`: what is taken stays the same number of units."""
        owed = max(0, self._back_at - now_ns * self.limit)
        self.limit, self.burst = limit, burst
        self._back_at = now_ns * limit + owed

    def wait_ns(self, amount: int, now_ns: int) -> int | None:
        """As `Meter.wait_ns`."""
        over = self._owed(now_ns) + (amount - self.burst) * self.period_ns
        return _up(over, self.limit) if over > 0 else 0

    def take(self, request: int, amount: int, now_ns: int) -> None:
        """As `Meter.take`."""
        self.correct(request, 0, amount, now_ns)

    def correct(self, request: int, taken: int, actual: int, now_ns: int) -> None:
        """As `Meter.correct`."""
        self._back_at = max(self._back_at, now_ns * self.limit) + (actual - taken) * self.period_ns

    def left(self, now_ns: int) -> int:
        """As `Meter.left`."""
        return max(0, self.burst * self.period_ns - self._owed(now_ns)) // self.period_ns

    def used(self, now_ns: int) -> int:
        """As `Meter.used`."""
        return _up(self._owed(now_ns), self.period_ns)

    def full_in_ns(self, now_ns: int) -> int:
        """As `Meter.full_in_ns`."""
        return _up(self._owed(now_ns), self.limit)

    def state(self) -> list[Any]:
        """When all is back: whole nanoseconds and the rest in units."""
        return list(divmod(self._back_at, self.limit))

    def restore(self, state: list[Any], shift_ns: int) -> None:
        """As `Meter.restore`."""
        self._back_at = (state[0] + shift_ns) * self.limit + state[1]

    def _owed(self, now_ns: int) -> int:
        return max(0, self._back_at - now_ns * self.limit)


class TokenBucket:
    """A level that rises with time up to `burst` and may fall below zero by corrections."""

    def __init__(self, limit: int, burst: int, period_ns: int) -> None:
        self.limit = limit
        self.burst = burst
        self.period_ns = period_ns
        self._level = burst * period_ns
        self._at_ns = 0

    def resize(self, limit: int, burst: int, now_ns: int) -> None:
        """As `Meter.resize`."""
        owed = self.burst * self.period_ns - self._available(now_ns)
        self.limit, self.burst = limit, burst
        self._level, self._at_ns = burst * self.period_ns - owed, now_ns

    def wait_ns(self, amount: int, now_ns: int) -> int | None:
        """As `Meter.wait_ns`."""
        missing = amount * self.period_ns - self._available(now_ns)
        return _up(missing, self.limit) if missing > 0 else 0

    def take(self, request: int, amount: int, now_ns: int) -> None:
        """As `Meter.take`."""
        self.correct(request, 0, amount, now_ns)

    def correct(self, request: int, taken: int, actual: int, now_ns: int) -> None:
        """As `Meter.correct`."""
        # What is given back above the burst is lost when the level is read.
        self._level, self._at_ns = self._available(now_ns) + (taken - actual) * self.period_ns, now_ns

    def left(self, now_ns: int) -> int:
        """As `Meter.left`."""
        return max(0, self._available(now_ns)) // self.period_ns

    def used(self, now_ns: int) -> int:
        """As `Meter.used`."""
        return _up(self.burst * self.period_ns - self._available(now_ns), self.period_ns)

    def full_in_ns(self, now_ns: int) -> int:
        """As `Meter.full_in_ns`."""
        return _up(self.burst * self.period_ns - self._available(now_ns), self.limit)

    def state(self) -> list[Any]:
        """Level in whole units and the rest, and when it was so."""
        return [*divmod(self._level, self.period_ns), self._at_ns]

    def restore(self, state: list[Any], shift_ns: int) -> None:
        """As `Meter.restore`."""
        self._level = state[0] * self.period_ns + state[1]
        self._at_ns = state[2] + shift_ns

    def _available(self, now_ns: int) -> int:
        return min(self.burst * self.period_ns, self._level + (now_ns - self._at_ns) * self.limit)


class SlidingLog:
    """The times of what was accepted: at most `limit` in any span of a period, both of its ends included."""

    def __init__(self, limit: int, burst: int, period_ns: int) -> None:
        self.limit = limit
        self.burst = burst
        self.period_ns = period_ns
        self._entries: deque[list[int]] = deque()
        """Time, request and amount of each, oldest first."""
        self._sum = 0

    def resize(self, limit: int, burst: int, now_ns: int) -> None:
        """As `Meter.resize`."""
        self.limit, self.burst = limit, burst

    def wait_ns(self, amount: int, now_ns: int) -> int | None:
        """As `Meter.wait_ns`."""
        self._expire(now_ns)
        over = self._sum + amount - self.limit
        wait_ns = 0
        for at_ns, _, taken in self._entries:
            if over <= 0:
                break
            over -= taken
            wait_ns = at_ns + self.period_ns + 1 - now_ns
        return wait_ns

    def take(self, request: int, amount: int, now_ns: int) -> None:
        """As `Meter.take`."""
        self._entries.append([now_ns, request, amount])
        self._sum += amount

    def correct(self, request: int, taken: int, actual: int, now_ns: int) -> None:
        """As `Meter.correct`; what has left the span is not given back a second time."""
        self._expire(now_ns)
        entry = next((entry for entry in reversed(self._entries) if entry[1] == request), None)
        if entry is None:
            if actual > taken:
                self.take(request, actual - taken, now_ns)
            return
        change = max(actual - taken, -entry[2])
        entry[2] += change
        self._sum += change

    def left(self, now_ns: int) -> int:
        """As `Meter.left`."""
        return max(0, self.limit - self.used(now_ns))

    def used(self, now_ns: int) -> int:
        """As `Meter.used`."""
        self._expire(now_ns)
        return self._sum

    def full_in_ns(self, now_ns: int) -> int:
        """As `Meter.full_in_ns`."""
        if not self.used(now_ns):
            return 0
        newest = next(at_ns for at_ns, _, amount in reversed(self._entries) if amount)
        return newest + self.period_ns + 1 - now_ns

    def state(self) -> list[Any]:
        """The entries, as lists."""
        return [list(entry) for entry in self._entries if entry[2]]

    def restore(self, state: list[Any], shift_ns: int) -> None:
        """As `Meter.restore`."""
        self._entries = deque([at_ns + shift_ns, request, amount] for at_ns, request, amount in state)
        self._sum = sum(amount for _, _, amount in self._entries)

    def _expire(self, now_ns: int) -> None:
        while self._entries and now_ns - self._entries[0][0] > self.period_ns:
            self._sum -= self._entries.popleft()[2]


class Gauge:
    """A count of what is there now. When somebody will leave is not known."""

    def __init__(self, limit: int, burst: int, period_ns: int) -> None:
        self.limit = limit
        self.burst = burst
        self._taken = 0

    def resize(self, limit: int, burst: int, now_ns: int) -> None:
        """As `Meter.resize`."""
        self.limit, self.burst = limit, burst

    def wait_ns(self, amount: int, now_ns: int) -> int | None:
        """As `Meter.wait_ns`."""
        return 0 if self._taken + amount <= self.limit else None

    def take(self, request: int, amount: int, now_ns: int) -> None:
        """As `Meter.take`."""
        self._taken += amount

    def correct(self, request: int, taken: int, actual: int, now_ns: int) -> None:
        """As `Meter.correct`."""
        self._taken = max(0, self._taken + actual - taken)

    def left(self, now_ns: int) -> int:
        """As `Meter.left`."""
        return max(0, self.limit - self._taken)

    def used(self, now_ns: int) -> int:
        """As `Meter.used`."""
        return self._taken

    def full_in_ns(self, now_ns: int) -> int:
        """0: nobody knows."""
        return 0

    def state(self) -> list[Any]:
        """The count."""
        return [self._taken]

    def restore(self, state: list[Any], shift_ns: int) -> None:
        """As `Meter.restore`."""
        self._taken = state[0]


ALGORITHMS: dict[str, type[Gcra] | type[TokenBucket] | type[SlidingLog] | type[Gauge]] = {
    "gcra": Gcra,
    "token_bucket": TokenBucket,
    "sliding_log": SlidingLog,
    "gauge": Gauge,
}
"""`LimitItem.algorithm`: how it is measured."""


def _up(units: int, rate: int) -> int:
    """`units / rate`, rounded up: a wait that is never too short."""
    return -(-units // rate)
