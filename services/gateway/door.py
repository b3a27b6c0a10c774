"""How many clients may be connected at a time, and what the next one is told.

Owns that number. A gateway that ran out of descriptors could not open a file or a stream any more either, so it serves
fewer clients than it may have files open, and whoever comes then gets an answer instead of silence.
"""

import asyncio
import logging
import resource
from typing import cast

from aiohttp import web

from services.errors import RequestError
from services.gateway.connection import Connection, last_words
from services.settings import HttpSettings

KEPT = 128
"""Descriptors for streams, files and child processes, and for those who are being turned away."""
MOST_TURNED_AWAY = KEPT // 2
"""At a time; more than so many are cut off without a word."""
LINGER_S = 1.0
"""How long a client may take to read why it is turned away."""

log = logging.getLogger(__name__)


class Door:
    """Called for each client that connects, it makes the protocol of its connection.

    Args:
        server: whose connections are counted.
        http: with the limit.
        loop: on which they are served.

    Attributes:
        most: clients at a time.
        num_turned_away: since the start.
    """

    def __init__(self, server: web.Server, http: HttpSettings, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._http = http
        self._loop = loop
        self.most = min(http.max_connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - KEPT)
        self.num_turned_away = 0
        self._num_entering = 0
        """Let in during this turn of the loop: the server counts them from the next on."""
        self._is_full = False
        self._turned_away: dict[asyncio.Transport, asyncio.TimerHandle] = {}

    def __call__(self) -> asyncio.Protocol:
        """The protocol of the next client."""
        if len(self._server.connections) + self._num_entering >= self.most:
            if not self._is_full:
                log.warning("%d clients are connected, as many as may be: others are turned away", self.most)
            self._is_full = True
            self.num_turned_away += 1
            return TurnedAway(self)
        self._is_full = False
        if not self._num_entering:
            self._loop.call_soon(self._entered)
        self._num_entering += 1
        return Connection(self._server, self._http, self._loop)

    def turn_away(self, transport: asyncio.Transport) -> None:
        """Say why, and do not wait long until it is read."""
        if len(self._turned_away) >= MOST_TURNED_AWAY:
            transport.abort()
            return
        message = f"{self.most} clients are connected to this gateway, as many as may be; retry in 1 s"
        transport.write(last_words(RequestError("too_many_connections", message)))
        # Not closed yet: what the client sends would be answered by a reset, and that might overtake what it was told.
        transport.write_eof()
        self._turned_away[transport] = self._loop.call_later(LINGER_S, transport.abort)

    def left(self, transport: asyncio.Transport) -> None:
        """Whoever was turned away has gone."""
        if (timer := self._turned_away.pop(transport, None)) is not None:
            timer.cancel()

    def _entered(self) -> None:
        self._num_entering = 0


class TurnedAway(asyncio.Protocol):
    """A connection that is not served; what its client sends is not read."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio has it."""
        self._transport = cast("asyncio.Transport", transport)
        self._door.turn_away(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        """As asyncio has it."""
        if self._transport is not None:
            self._door.left(self._transport)
