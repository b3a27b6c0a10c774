"""Something that is done again and again on the loop of a service."""

import asyncio
from collections.abc import Callable

TELL_S = 1.0
"""How often services tell gateways how full they are."""


class Ticker:
    """Calls `act` every `period_s` seconds from `start` until `close`."""

    def __init__(self, period_s: float, act: Callable[[], None]) -> None:
        self._period_s = period_s
        self._act = act
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """The first call is one period from now."""
        self._timer = asyncio.get_running_loop().call_later(self._period_s, self._tick)

    def close(self) -> None:
        """No more calls."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self.start()
        self._act()
