"""What a request waited for before its release: its limits' store, its tenant's turn, or room in the window.

Owns whose turn it is and since when; decides nothing.
"""

from policies.admission.nodes import Queued


class Turns:
    """The one request that is next and does not fit, if there is one."""

    def __init__(self) -> None:
        self._next: Queued | None = None
        self._since_s = 0.0

    def blocked(self, queued: Queued, now: float) -> None:
        """It is this one's turn, and it does not fit."""
        if queued is not self._next:
            self._end(now)
            self._next, self._since_s = queued, now

    def waits_s(self, queued: Queued, now: float) -> dict[str, float]:
        """It is released: how long it waited for what; causes that cost no time are left out."""
        if queued is self._next:
            self._end(now)
        window_s = queued.blocked_s
        fairness_s = max(0.0, now - queued.arrived_at_s - queued.limits_s - window_s)
        waits = {"limits": queued.limits_s, "fairness": fairness_s, "window": window_s}
        return {cause: wait_s for cause, wait_s in waits.items() if wait_s}

    def _end(self, now: float) -> None:
        if self._next is not None:
            self._next.blocked_s += now - self._since_s
            self._next = None
