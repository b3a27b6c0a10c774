"""When tokens came, for every request at once: columns over requests, because a step touches hundreds of them.

Owns counts and times of output tokens, and where a request's last one is. Knows no policy, class, step or device.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from policies.simulation.trace_request import TraceRequest

Requests = NDArray[np.int64]


class Gaps(NamedTuple):
    """Times between successive tokens of a request, in the order they ended."""

    requests: Requests
    """Whose gap each is."""
    seconds: NDArray[np.float64]
    """Parallel to `requests`."""


NO_GAPS = Gaps(np.empty(0, np.int64), np.empty(0))


class TokenTimes:
    """Output tokens of requests numbered from 1.

    Attributes:
        num_tokens: tokens so far, by request.
        last_at_s: time of the newest token, NaN before the first, by request.
    """

    def __init__(self, num_requests: int) -> None:
        self.num_tokens = np.zeros(num_requests + 1, np.int64)
        self.last_at_s = np.full(num_requests + 1, np.nan)
        self._requests: list[Requests] = []
        self._gaps: list[NDArray[np.float64]] = []

    def add(self, requests: Requests, now: float) -> Requests:
        """One more token for each of these; returns those whose first it is."""
        gaps = now - self.last_at_s[requests]
        self.last_at_s[requests] = now
        self.num_tokens[requests] += 1
        self._requests.append(requests)
        self._gaps.append(gaps)
        return requests[np.isnan(gaps)]

    @property
    def num_steps(self) -> int:
        """How often tokens were added."""
        return len(self._gaps)

    def gaps(self, since_step: int = 0) -> Gaps:
        """All gaps; with `since_step`, those that ended after tokens had been added so many times."""
        if len(self._gaps) <= since_step:
            return NO_GAPS
        requests = np.concatenate(self._requests[since_step:])
        seconds = np.concatenate(self._gaps[since_step:])
        later = ~np.isnan(seconds)
        return Gaps(requests[later], seconds[later])


def own_ends(requests: list[TraceRequest], *, samples_first: bool) -> NDArray[np.int64] | None:
    """By request: its tokens in KV when the token comes with which it ends by itself, 0 where it goes on to what it
    asked for at most. None: all of them do.
    """
    ends = np.zeros(len(requests) + 1, np.int64)
    for number, request in enumerate(requests, start=1):
        if request.output_tokens < request.declared_tokens:
            ends[number] = request.prompt_tokens + request.output_tokens - samples_first
    return ends if ends.any() else None
