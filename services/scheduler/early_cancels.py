"""Cancels that came before their requests.

A gateway's cancel and admission's release come by different streams, so that either may be first. Knows ids and
reasons alone.
"""

from collections import OrderedDict

MOST = 10_000
"""Most of them are of requests that never come, because they waited at admission: the oldest go first."""


class EarlyCancels:
    """The newest of them."""

    def __init__(self) -> None:
        self._reasons: OrderedDict[int, str] = OrderedDict()

    def came(self, request: int, reason: str) -> None:
        """A cancel of a request that is not here."""
        self._reasons.setdefault(request, reason)
        if len(self._reasons) > MOST:
            self._reasons.popitem(last=False)

    def take(self, request: int) -> str | None:
        """A request has come: the reason for which it was cancelled; None: it was not."""
        return self._reasons.pop(request, None)
