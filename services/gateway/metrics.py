"""What a gateway's `/metrics` shows: the latencies that its keeper counts, and what only the gateway sees."""

import msgspec

from services.gateway.auth import Keys
from services.gateway.backend import Backend
from services.telemetry import names
from services.telemetry.keeper_link import KeeperError, KeeperLink
from services.telemetry.metrics import Family, Registry

_families = msgspec.msgpack.Decoder(list[Family])


class GatewayMetrics:
    """One gateway's."""

    def __init__(self, backend: Backend, keys: Keys, keeper: KeeperLink | None) -> None:
        self._backend = backend
        self._keys = keys
        self._keeper = keeper
        self._registry = Registry()
        self._discarded = self._registry.counter(names.DISCARDED)
        self._resumed = self._registry.counter(names.RESUMED)
        self._running = self._registry.gauge(names.REQUESTS_RUNNING)
        self._keys_refused = self._registry.counter(names.KEYS_REFUSED)
        self._dropped = self._registry.counter(names.RECORDS_DROPPED)

    async def own(self) -> list[Family]:
        """What only the gateway sees; the keeper pushes the rest to the collector."""
        self._discarded.raise_to(self._backend.num_discarded)
        self._resumed.raise_to(self._backend.num_resumed)
        self._running.set(len(self._backend.running))
        for reason, number in self._keys.num_refused.items():
            self._keys_refused.raise_to(number, reason)
        if self._keeper is not None:
            self._dropped.raise_to(self._keeper.num_dropped)
        return self._registry.families()

    async def families(self) -> list[Family]:
        """All of it."""
        own = await self.own()
        if self._keeper is None:
            return own
        try:
            return [*own, *_families.decode(await self._keeper.ask("metrics"))]
        except KeeperError:
            return own
