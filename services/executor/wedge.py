"""When an executor finds that a step of its own will never end: its scheduler has gone, and the device still computes.

That the scheduler gave it up is the scheduler's decision, by the same limits; this sees the stream broken, and waits as
long again, because a scheduler that merely starts again breaks it too. The executor's thread writes, another one reads.
"""

from typing import Protocol

from policies.events import StepLimits


class Lost(Protocol):
    """A stream, as far as it matters here."""

    lost_s: float | None


class Wedge:
    """Of one executor.

    Attributes:
        stream: to the scheduler; None: there was none yet.
    """

    def __init__(self, limits: StepLimits) -> None:
        self._limits = limits
        self._begun_s: list[float] = []
        self._longest_s: float | None = None
        self.stream: Lost | None = None

    def step_begins(self, now: float) -> None:
        """One more is in flight."""
        self._begun_s.append(now)

    def step_ended(self, now: float, took_s: float) -> None:
        """The oldest is not any more; those after it begin indeed."""
        self._longest_s = max(took_s, self._longest_s or 0.0)
        self._begun_s = [now for _ in self._begun_s[1:]]

    def found(self, now: float) -> str:
        """Why this process is of no use any more; empty: nothing is known against it."""
        begun_s = self._begun_s[:1]
        lost_s = None if self.stream is None else self.stream.lost_s
        if not begun_s or lost_s is None:
            return ""
        limits, longest_s = self._limits, self._longest_s
        limit_s = limits.first_s if longest_s is None else max(limits.at_least_s, limits.times * longest_s)
        if now - max(begun_s[0], lost_s) < limit_s:
            return ""
        return f"the scheduler has gone, and a step that began {now - begun_s[0]:.0f} s ago has not ended"
