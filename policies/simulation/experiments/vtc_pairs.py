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

    def __init__(self, admission: AdmissionCore) -> None:
        self._admission = admission
        self._there: list[str] = []
        self._most = np.empty((0, 0))
        """How far the counter of a row was ever above that of a column, since both are there."""
        self.largest = 0.0

    def __call__(self, core: str, now: float, event: object, commands: list[Command]) -> None:  # noqa: ARG002
        """See the counters after an event."""
        if core != ADMISSION:
            return
        tenants = list(self._admission.queue.backlogged())
        names = [tenant.name for tenant in tenants]
        if names != self._there:
            self._follow(names)
        if len(names) > 1:
            counters = np.array([tenant.counter for tenant in tenants])
            np.maximum(self._most, counters[:, None] - counters, out=self._most)
            self.largest = max(self.largest, float((self._most + self._most.T).max()))

    def _follow(self, names: list[str]) -> None:
        """Somebody joined the backlog or left it; the pairs that stay keep what was seen of them."""
        before = {name: number for number, name in enumerate(self._there)}
        stay = [number for number, name in enumerate(names) if name in before]
        were = [before[names[number]] for number in stay]
        most = np.full((len(names), len(names)), -np.inf)
        most[np.ix_(stay, stay)] = self._most[np.ix_(were, were)]
        self._there, self._most = names, most
