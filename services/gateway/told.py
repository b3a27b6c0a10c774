"""What admission said of a request, for the headers of its answer.

Knows no HTTP and no tokens.
"""

import time

from policies.admission.limits.items import LimitState
from services.wire import Admitted, Queued, Refused

NS_PER_S = 1e9


class Told:
    """Of all requests of one answer, the last word counts."""

    def __init__(self) -> None:
        self.limits: tuple[LimitState, ...] = ()
        """As they were after the last reservation; empty: none apply."""
        self.limits_unix_s = 0.0
        """When that was."""
        self.position: int | None = None
        """Requests that were to be released before it when it was queued."""
        self.wait_s: float | None = None
        """How long it waited in the queue; until that is known, how long it is expected to wait."""
        self.slo_class = ""
        """Under which it was released; empty: it was not."""

    def queued(self, message: Queued) -> None:
        """It waits."""
        self._note(message.limits)
        self.position = message.position
        self.wait_s = message.expected_wait_s

    def admitted(self, message: Admitted) -> None:
        """It was released."""
        self._note(message.limits)
        self.slo_class = message.slo_class
        if message.slo_class:
            self.position = self.position or 0
            self.wait_s = max(0, message.released_ns - message.queued_ns) / NS_PER_S

    def refused(self, message: Refused) -> None:
        """It will not be served. What it was told while it waited no longer holds."""
        self._note(message.limits)
        self.position = message.position
        self.wait_s = message.retry_after_s if message.position is not None else None

    def _note(self, limits: tuple[LimitState, ...]) -> None:
        if limits:
            self.limits = limits
            self.limits_unix_s = time.time()
