"""Accepting TCP connections that are encrypted with what the certificates are when each arrives.

Not `loop.create_server(ssl=...)`, which keeps one context for its life and says nothing of handshakes that fail.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress

from services.streams import HANDSHAKE_S, SocketStream
from services.tls import Certificates, Secured, sentence

MOST_AT_ONCE = 256
"""Connections in TLS's handshake: of more, the oldest goes."""
PAUSE_S = 0.1
"""After an accept that failed, for want of descriptors: they come back, and until then a loop would spin."""

log = logging.getLogger(__name__)


class Arrivals:
    """A server of streams over TLS, with the part of `asyncio.Server` that a listener uses."""

    def __init__(self, listening: socket.socket, certificates: Certificates, make: Callable[[], SocketStream]) -> None:
        self.sockets = [listening]
        self._certificates = certificates
        self._make = make
        self._securing: dict[asyncio.Task[None], None] = {}
        self._accepting: asyncio.Task[None] | None = None

    @classmethod
    async def at(cls, host: str, port: int, certificates: Certificates, make: Callable[[], SocketStream]) -> "Arrivals":
        """Bound there; raises `OSError`."""
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setblocking(False)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen()
        except OSError:
            listening.close()
            raise
        return cls(listening, certificates, make)

    async def start_serving(self) -> None:
        """Accept from now on."""
        self._accepting = asyncio.get_running_loop().create_task(self._accept())
        self._accepting.add_done_callback(lambda task: task.cancelled() or task.result())

    def close(self) -> None:
        """Accept no more, and drop what is not encrypted yet."""
        if self._accepting is not None:
            self._accepting.cancel()
        for task in self._securing:
            task.cancel()
        self.sockets[0].close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        complaint = ""
        while True:
            try:
                arrived, address = await loop.sock_accept(self.sockets[0])
            except OSError as error:
                if str(error) != complaint:
                    complaint = str(error)
                    log.error("no stream can be accepted: %s", complaint)  # noqa: TRY400  the sentence says it all
                await asyncio.sleep(PAUSE_S)
                continue
            complaint = ""
            if len(self._securing) >= MOST_AT_ONCE:
                next(iter(self._securing)).cancel()
            task = loop.create_task(self._secure(arrived, f"{address[0]}:{address[1]}"))
            self._securing[task] = None
            task.add_done_callback(self._secured)

    async def _secure(self, arrived: socket.socket, address: str) -> None:
        arrived.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        secured, stream = Secured(self._certificates), self._make()
        stream.secured = secured
        error: Exception | None = None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: stream, arrived, ssl=secured.listening, ssl_handshake_timeout=HANDSHAKE_S
            )
        except OSError as failed:
            error = failed
            log.warning("no stream from %s: %s", address, sentence(failed))
        finally:
            if not stream.is_connected:
                stream.connection_lost(error)
                with suppress(OSError):
                    arrived.close()

    def _secured(self, task: asyncio.Task[None]) -> None:
        del self._securing[task]
        if not task.cancelled():
            task.result()
