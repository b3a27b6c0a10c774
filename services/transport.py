"""Streams of messages between the services: unix:// and tcp:// addresses, and pairs within one loop for tests.

A stream carries the messages of `wire` both ways after a handshake in which both ends prove that they know the shared
secret. A malformed frame, a wrong proof or an older epoch closes that connection and nothing else, with a logged
reason. `send` never blocks: a peer that does not read makes the stream stall, which its receiver is told.

Owns listening, connecting and connecting again; knows no message's meaning.
"""

import asyncio
import logging
import os
import socket
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from services import tls
from services.arrivals import Arrivals
from services.framing import (
    AddressError,
    ConnectorHandshake,
    HandshakeError,
    Identity,
    ListenerHandshake,
    Peer,
    UnixAddress,
    is_milestone,
    parse_address,
)
from services.inproc import InprocStream, inproc_pair
from services.streams import SILENCE_S, Receiver, SocketStream, Stream
from services.tls import Certificates, Secured

__all__ = [
    "AddressError",
    "Identity",
    "InprocStream",
    "Link",
    "Listener",
    "Peer",
    "Receiver",
    "Stream",
    "inproc_pair",
    "listen",
]

FIRST_RETRY_S = 0.02
LAST_RETRY_S = 1.0
MAX_FRAME_BYTES = 64 * 2**20
BUFFER_BYTES = 8 * 2**20
MOST_UNPROVED = 256
"""Connections of one listener before their proof: each holds a descriptor and little memory."""
MOST_ABSENT = 1000
"""Instances that are not connected and whose newest epoch is remembered: each start of a gateway is an instance of its
own. An older process of one that is forgotten would be let in, if it slept while so many others came and went.
"""

log = logging.getLogger(__name__)


class Server(Protocol):
    """What accepts: asyncio's server, or `Arrivals`."""

    @property
    def sockets(self) -> Sequence[Any]:
        """What is listened on."""

    def close(self) -> None:
        """Accept no more."""


class Listener:
    """An address that accepts streams, at most one of each (service, instance): a newer one replaces an older."""

    def __init__(self, server: Server, path: Path | None) -> None:
        self._server = server
        self._path = path
        self._waiting: list[SocketStream] = []
        self._num_pushed_out = 0
        self._streams: list[SocketStream] = []
        self._epochs: dict[tuple[str, str], int] = {}
        """The newest of each instance, those that came last at the end."""

    @property
    def port(self) -> int:
        """The TCP port in use."""
        return int(self._server.sockets[0].getsockname()[1])

    def expect(self, stream: SocketStream) -> SocketStream:
        """A connection begins its handshake. Of many that prove nothing the oldest goes: an honest one is done at once,
        and whoever opens more cannot keep it out.
        """
        if len(self._waiting) >= MOST_UNPROVED:
            self._num_pushed_out += 1
            if is_milestone(self._num_pushed_out):
                log.warning("%d connections that proved nothing in time made way for others", self._num_pushed_out)
            self._waiting.pop(0).supersede()
        self._waiting.append(stream)
        return stream

    def admit(self, stream: SocketStream, peer: Peer) -> None:
        """Check the epoch and end the peer's previous stream.

        Raises:
            HandshakeError: a newer epoch of this instance was seen.
        """
        name = (peer.service, peer.instance)
        newest = self._epochs.get(name, peer.epoch)
        if peer.epoch < newest:
            raise HandshakeError(f"{peer.service} {peer.instance} has epoch {peer.epoch}; epoch {newest} came before")
        for other in [other for other in self._streams if (other.peer.service, other.peer.instance) == name]:
            other.supersede()
        self._epochs.pop(name, None)
        self._epochs[name] = peer.epoch
        self._waiting.remove(stream)
        self._streams.append(stream)
        if len(self._epochs) - len(self._streams) > MOST_ABSENT:
            present = {(each.peer.service, each.peer.instance) for each in self._streams} | {name}
            del self._epochs[next(each for each in self._epochs if each not in present)]

    def forget(self, stream: SocketStream) -> None:
        """A connection is gone."""
        for streams in (self._waiting, self._streams):
            if stream in streams:
                streams.remove(stream)

    async def close(self) -> None:
        """Stop accepting, close every stream and remove the socket file."""
        self._server.close()
        await asyncio.gather(*(stream.shut() for stream in [*self._waiting, *self._streams]))
        if self._path is not None:
            self._path.unlink(missing_ok=True)


async def listen(
    address: str,
    identity: Identity,
    secret: bytes,
    receiver: Receiver,
    *,
    max_frame_bytes: int = MAX_FRAME_BYTES,
    buffer_bytes: int = BUFFER_BYTES,
    silence_s: float = SILENCE_S,
    certificates: Certificates | None = None,
    allow_plaintext: bool = False,
    now_ns: Callable[[], int] = time.monotonic_ns,
) -> Listener:
    """Accept streams at an address; over TCP with TLS where there are certificates.

    A Unix socket file is made with mode 0600 in a folder of mode 0700.

    Raises:
        AddressError: the address is malformed, in use or cannot be bound.
    """
    where = parse_address(address, allow_plaintext=allow_plaintext or certificates is not None)
    listening: list[Listener] = []

    def accept() -> SocketStream:
        stream = SocketStream(
            ListenerHandshake(identity, secret),
            receiver,
            max_frame_bytes=max_frame_bytes,
            buffer_bytes=buffer_bytes,
            silence_s=silence_s,
            registry=listening[0],
            now_ns=now_ns,
        )
        return listening[0].expect(stream)

    loop = asyncio.get_running_loop()
    try:
        if isinstance(where, UnixAddress):
            server: asyncio.Server | Arrivals = await loop.create_unix_server(
                accept, sock=_bind_unix(where.path), start_serving=False
            )
        elif certificates is not None:
            server = await Arrivals.at(where.host, where.port, certificates, accept)
        else:
            server = await loop.create_server(accept, where.host, where.port, start_serving=False)
    except OSError as error:
        raise AddressError(f"{address}: cannot listen there: {error.strerror or error}") from error
    listening.append(Listener(server, where.path if isinstance(where, UnixAddress) else None))
    await server.start_serving()
    return listening[0]


class Link:
    """A connection that is kept up: it connects, and connects again after a pause that grows from 20 ms to 1 s."""

    def __init__(
        self,
        address: str,
        identity: Identity,
        secret: bytes,
        receiver: Receiver,
        *,
        max_frame_bytes: int = MAX_FRAME_BYTES,
        buffer_bytes: int = BUFFER_BYTES,
        silence_s: float = SILENCE_S,
        certificates: Certificates | None = None,
        allow_plaintext: bool = False,
    ) -> None:
        self.address = address
        self._where = parse_address(address, allow_plaintext=allow_plaintext or certificates is not None)
        self._certificates = certificates
        self._identity = identity
        self._secret = secret
        self._receiver = receiver
        self._max_frame_bytes = max_frame_bytes
        self._buffer_bytes = buffer_bytes
        self._silence_s = silence_s
        self._connection: SocketStream | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def stream(self) -> Stream | None:
        """The open stream, or None while there is none."""
        return self._connection if self._connection is not None and self._connection.is_open else None

    def start(self) -> None:
        """Begin to connect; `receiver.opened` tells when it worked."""
        self._task = asyncio.get_running_loop().create_task(self._keep_up())

    async def close(self) -> None:
        """Close the stream and stop connecting."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._connection is not None:
            await self._connection.shut()

    async def _keep_up(self) -> None:
        epoch = self._identity.epoch or time.time_ns()
        pause_s = FIRST_RETRY_S
        complaint = ""
        while True:
            # Each connection is an epoch of its own: what an earlier one still delivers is refused. Not by the clock: a
            # process that was stopped for long and is woken must not seem newer than its successor.
            epoch += 1
            reason = await self._connect(msgspec.structs.replace(self._identity, epoch=epoch))
            if self._connection is not None:
                await asyncio.wait([self._connection.ended])
                reason = self._connection.ended.result()
                if self._connection.was_open:
                    pause_s, complaint = FIRST_RETRY_S, ""
                self._connection = None
            if reason != complaint:
                log.info("no stream to %s: %s; trying again", self.address, reason)
                complaint = reason
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_RETRY_S)

    async def _connect(self, identity: Identity) -> str:
        """Why it did not work, or nothing."""
        secured = None
        if self._certificates is not None and not isinstance(self._where, UnixAddress):
            secured = Secured(self._certificates)

        def make() -> SocketStream:
            self._connection = SocketStream(
                ConnectorHandshake(identity, self._secret),
                self._receiver,
                max_frame_bytes=self._max_frame_bytes,
                buffer_bytes=self._buffer_bytes,
                silence_s=self._silence_s,
                secured=secured,
            )
            return self._connection

        loop = asyncio.get_running_loop()
        try:
            if isinstance(self._where, UnixAddress):
                await loop.create_unix_connection(make, str(self._where.path))
            else:
                context = None if secured is None else secured.connecting
                await loop.create_connection(make, self._where.host, self._where.port, ssl=context)
        except OSError as error:
            self._connection = None
            return tls.sentence(error)
        return ""


def _bind_unix(path: Path) -> socket.socket:
    """A socket file that only this user can reach. A file left by a dead process is removed."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove_stale(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o177)
    try:
        bound.bind(str(path))
    except OSError:
        bound.close()
        raise
    finally:
        os.umask(previous)
    return bound


def _remove_stale(path: Path) -> None:
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise AddressError(f"unix://{path}: a file that is not a socket is in the way")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise AddressError(f"unix://{path}: another process listens there")
