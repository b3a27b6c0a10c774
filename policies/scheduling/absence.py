"""Requests that wait for an executor where there is none: for how long.

A model may load and compile for minutes, which its readers see as a pause; but nobody waits for ever. Knows counts and
times, no requests.
"""

LONGEST_S = 600.0
"""As long as an executor may take for its first step (`watchdog.first_step_s`)."""
CODE = "no_capacity"
SENTENCE = f"no executor has been there for {LONGEST_S:g} s; try again"


class Absence:
    """Of all executors, while somebody waits for one."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    def look(self, num_executors: int, num_requests: int, now: float) -> None:
        """So many there are now."""
        if num_executors or not num_requests:
            self._since_s = None
        elif self._since_s is None:
            self._since_s = now

    def over_at_s(self) -> float | None:
        """Core time from which nobody waits any more; None: nobody waits."""
        return None if self._since_s is None else self._since_s + LONGEST_S

    def is_over(self, now: float) -> bool:
        """Whether whoever waits is to be told so."""
        over_at_s = self.over_at_s()
        return over_at_s is not None and over_at_s <= now
