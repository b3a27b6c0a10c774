"""Gateways that do not read: first their sequences are left out of plans, then cancelled.

Owns who is stalled since when. Knows no sequences.
"""

LEFT_OUT_AFTER_S = 1.0
CANCELLED_AFTER_S = 10.0


class Stalls:
    """Stalled gateways and the times at which something must be done about them."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._left_out: dict[int, bool] = {}

    def begin(self, gateway: int, now: float) -> None:
        """It stopped reading."""
        self._since.setdefault(gateway, now)

    def end(self, gateway: int) -> bool:
        """It reads again, or is gone. True if its sequences had been left out."""
        self._since.pop(gateway, None)
        return self._left_out.pop(gateway, False)

    def is_left_out(self, gateway: int) -> bool:
        """Whether its sequences are left out of plans now."""
        return gateway in self._left_out

    def next_at_s(self) -> float | None:
        """Core time at which `overdue` will next have something, or None."""
        if not self._since:
            return None
        times = [
            since + (CANCELLED_AFTER_S if gateway in self._left_out else LEFT_OUT_AFTER_S)
            for gateway, since in self._since.items()
        ]
        return min(times)

    def overdue(self, now: float) -> tuple[list[int], list[int]]:
        """Gateways to leave out from now on, and gateways whose requests must be cancelled. One that still does not
        read after that stays left out, and what came for it is cancelled when as much time has passed again.
        """
        left_out = [
            g for g, since in self._since.items() if g not in self._left_out and since + LEFT_OUT_AFTER_S <= now
        ]
        self._left_out |= dict.fromkeys(left_out, True)
        cancelled = [g for g, since in self._since.items() if since + CANCELLED_AFTER_S <= now]
        self._since |= dict.fromkeys(cancelled, now)
        return left_out, cancelled
