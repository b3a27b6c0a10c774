"""When a process that ended is started again, and when no more.

Counts ends of one process. Knows no process and reads no clock.
"""

from collections import deque

FIRST_PAUSE_S = 0.2
LAST_PAUSE_S = 10.0


class Crashes:
    """Ends that nobody asked for, of one process.

    Args:
        allowed: so many within the window are borne.
        window_s: seconds.
    """

    def __init__(self, allowed: int, window_s: float) -> None:
        self._allowed = allowed
        self._window_s = window_s
        self._at_s: deque[float] = deque()

    def pause_s(self, now: float) -> float | None:
        """It has ended: seconds until it is started again; None: it has ended too often.

        At once the first time: whoever worked for hours is missed each second. Then twice as long each time.
        """
        self._at_s.append(now)
        while self._at_s[0] < now - self._window_s:
            self._at_s.popleft()
        if self.count > self._allowed:
            return None
        return min(FIRST_PAUSE_S * 2 ** (self.count - 2), LAST_PAUSE_S) if self.count > 1 else 0.0

    @property
    def count(self) -> int:
        """Ends within the window up to the last."""
        return len(self._at_s)

    def forgive(self) -> None:
        """Begin anew: somebody has asked for another try."""
        self._at_s.clear()
