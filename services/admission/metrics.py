"""What admission counts: who waits, who has had what, and what is refused.

Told of every event after it was decided; levels are read when somebody asks. Changes nothing.
"""

from typing import Any

from policies.admission.backlog import queued_by_class
from policies.admission.core import AdmissionCore
from policies.admission.evenness import jain
from policies.admission.ledger import LOST
from policies.admission.window import OPEN_TOKENS
from policies.commands import Command, Refuse, Settle
from policies.events import OverLimit, Reserved
from services.telemetry import names
from services.telemetry.largest import Largest
from services.telemetry.metrics import Family, Registry

APPLIED, REJECTED = "applied", "rejected"
ALLOWED, REFUSED, NEVER_FITS = "allowed", "refused", "never_fits"


class AdmissionMetrics:
    """One admission core's."""

    def __init__(self, core: AdmissionCore) -> None:
        self._core = core
        registry = self._registry = Registry()
        self._depth = registry.gauge(names.QUEUE_DEPTH)
        self._window = registry.gauge(names.WINDOW)
        self._gap_ratio = registry.gauge(names.GAP_RATIO)
        self._jain = registry.gauge(names.JAIN)
        self._service = registry.counter(names.TENANT_SERVICE)
        self._limits = registry.counter(names.LIMIT_DECISIONS)
        self._refusals = registry.counter(names.REFUSALS)
        self._lost = registry.counter(names.LOST)
        self._revision = registry.gauge(names.REVISION)
        self._reloads = registry.counter(names.RELOADS)
        # What has not happened yet is 0, not absent: else its first time would be no increase.
        self._lost.add(0)
        for outcome in (APPLIED, REJECTED):
            self._reloads.add(0, outcome)
        self._settled: dict[str, float] = {}
        """By tenant: what ended requests were charged, in cost units."""
        self._largest = Largest()

    def look(self, now: float, event: Any, commands: list[Command]) -> None:
        """An event was decided."""
        del now
        if type(event) is Reserved:
            for state in event.limits:
                self._limits.add(1, state.dimension, ALLOWED)
        elif type(event) is OverLimit:
            self._limits.add(1, event.item.dimension, NEVER_FITS if event.never_fits else REFUSED)
        for command in commands:
            if type(command) is Settle:
                self._settle(command)
            elif type(command) is Refuse:
                self._refusals.add(1, command.code)

    def reloaded(self, outcome: str) -> None:
        """A save of the policy file came into force, or did not."""
        self._reloads.add(1, outcome)

    def families(self, revision: int) -> list[Family]:
        """All of it, with the levels as they are now; `revision`: in force, 0 before the first."""
        if revision:
            self._read_levels()
            self._revision.set(revision)
        return self._registry.families()

    def _settle(self, settled: Settle) -> None:
        cost = self._core.rules.cost
        # Whoever got its prompt back was charged nothing, though a cost may begin above 0.
        charged = cost.whole(settled.prompt_tokens, settled.output_tokens) if settled.prompt_tokens else 0.0
        if settled.cached_tokens:
            charged -= cost.saved(settled.prompt_tokens, settled.cached_tokens)
        self._settled[settled.tenant] = self._settled.get(settled.tenant, 0.0) + charged
        if settled.outcome == LOST:
            self._lost.add(1)

    def _read_levels(self) -> None:
        """O(waiting + in flight + tenants)."""
        core = self._core
        self._depth.replace(((name,), depth) for name, depth in queued_by_class(core).items())
        window = [(("reserved",), float(core.window.reserved_tokens))]
        if core.window.limit_tokens < OPEN_TOKENS:
            window.append((("limit",), float(core.window.limit_tokens)))
        self._window.replace(window)
        self._gap_ratio.set(core.gap_ratio)
        self._jain.set(jain(node.counter for node in core.queue.backlogged()))
        charged = dict(self._settled)
        for charge in core.ledger.in_flight.values():
            charged[charge.tenant] = charged.get(charge.tenant, 0.0) + charge.charged
        self._service.replace(((tenant,), service) for tenant, service in self._largest.follow(charged).items())
