"""How far apart two tenants' services drift while both are backlogged: the left side of VTC's theorem, at every event.

Owns that measurement of a simulation. A counter moves by charges alone while its tenant is backlogged, because lifts
happen when it joins: so differences of counters since the younger of the two joined are differences of service.
"""

import numpy as np

from policies.admission.core import AdmissionCore
from policies.commands import Command
from policies.simulation.driver import ADMISSION


class PairMeter:
    """An observer of one run.

    Attributes:
        largest: of |W_f - W_g|, over all pairs and all intervals in which both are backlogged; cost over weight.
    """

    def __init__(self, admission: AdmissionCore, tenants: list[str]) -> None:
        self._admission = admission
        self._numbers = {tenant: number for number, tenant in enumerate(tenants)}
        count = len(tenants)
        self._counters = np.full(count, np.nan)
        self._most, self._least = np.full((count, count), -np.inf), np.full((count, count), np.inf)
        self.largest = 0.0

    def __call__(self, core: str, now: float, event: object, commands: list[Command]) -> None:  # noqa: ARG002
        """See the counters after an event."""
        if core != ADMISSION:
            return
        counters = np.full(len(self._counters), np.nan)
        for account in self._admission.queue.backlogged():
            counters[self._numbers[account.name]] = account.counter
        left = np.isnan(counters)
        self._most[left], self._most[:, left] = -np.inf, -np.inf
        self._least[left], self._least[:, left] = np.inf, np.inf
        apart = counters[:, None] - counters[None, :]
        np.fmax(self._most, apart, out=self._most)
        np.fmin(self._least, apart, out=self._least)
        there = (~left).nonzero()[0]
        if len(there) > 1:
            both = np.ix_(there, there)
            self.largest = max(self.largest, float((self._most[both] - self._least[both]).max()))
