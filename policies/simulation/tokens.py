"""When tokens came, for every request at once: columns over requests, because a step touches hundreds of them.

Owns counts and times of output tokens. Knows no policy, step or device.
"""

import numpy as np
from numpy.typing import NDArray

Requests = NDArray[np.int64]


class TokenTimes:
    """Output tokens of requests numbered from 1.

    Attributes:
        num_tokens: tokens so far, by request.
        last_at_s: time of the newest token, NaN before the first, by request.
    """

    def __init__(self, num_requests: int, num_tenants: int) -> None:
        self.num_tokens = np.zeros(num_requests + 1, np.int64)
        self.last_at_s = np.full(num_requests + 1, np.nan)
        self._class = np.zeros(num_requests + 1, np.int64)
        self._classes: dict[str, int] = {}
        self._tenant = np.zeros(num_requests + 1, np.int64)
        self._tenants: dict[str, int] = {}
        self._of_tenants = np.zeros(num_tenants, np.int64)
        self._gaps: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []

    def begin(self, request: int, *, tenant: str, slo_class: str) -> None:
        """A request is released: whose tokens these will be."""
        self._class[request] = self._classes.setdefault(slo_class, len(self._classes))
        self._tenant[request] = self._tenants.setdefault(tenant, len(self._tenants))

    def add(self, requests: Requests, now: float) -> Requests:
        """One more token for each of these; returns those whose first it is."""
        gaps = now - self.last_at_s[requests]
        self.last_at_s[requests] = now
        self.num_tokens[requests] += 1
        self._of_tenants += np.bincount(self._tenant[requests], minlength=len(self._of_tenants))
        self._gaps.append((self._class[requests], gaps))
        return requests[np.isnan(gaps)]

    def of_tenant(self, tenant: str) -> int:
        """Tokens of all its requests so far."""
        number = self._tenants.get(tenant)
        return 0 if number is None else int(self._of_tenants[number])

    def gaps_s(self) -> dict[str, list[float]]:
        """Seconds between successive tokens of a request, by class, in the order they ended."""
        if not self._gaps:
            return {}
        classes = np.concatenate([chunk for chunk, _ in self._gaps])
        gaps = np.concatenate([chunk for _, chunk in self._gaps])
        later = ~np.isnan(gaps)
        return {
            name: samples.tolist()
            for name, number in self._classes.items()
            if len(samples := gaps[later & (classes == number)])
        }
