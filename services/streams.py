"""One end of a stream of messages: what a service sees of it, and the asyncio Protocol behind it.

Owns the handshake and the frames of one connection; knows no address, no other connection and no message's meaning.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import Protocol, cast

from services import tls
from services.clocks import ClockDifference
from services.framing import (
    MAX_HANDSHAKE_FRAME_BYTES,
    ConnectorHandshake,
    FrameBuffer,
    ListenerHandshake,
    Peer,
    StreamError,
    UnknownMessageError,
    decode_message,
    encode_frame,
    is_milestone,
)
from services.tls import OUTDATED
from services.wire import AnyMessage
from services.wire_operator import Ping, Pong
from services.wire_parts import Message

HANDSHAKE_S = 5.0
"""A peer that has not proved itself by then is disconnected."""
FLUSH_S = 2.0
"""A closing stream waits this long for its peer to read the rest."""
FIRST_PING_S, FIRST_PINGS = 0.05, 8
"""Between the first so many questions about the clock of a peer on another machine."""
PING_S, CLOCK_S = 1.0, 5.0
"""Between pings from then on; of a peer of protocol 1, which need not answer, for its clock alone."""
SILENCE_S = 5.0
"""A peer that was pinged and says nothing for so long is wedged, stopped or cut off."""
OVERRUN = 8
"""Unsent bytes, in multiples of the buffer, from which a stalled stream is closed: memory stays bounded."""

log = logging.getLogger(__name__)


class Stream(Protocol):
    """One end of an open stream."""

    @property
    def peer(self) -> Peer:
        """Who is at the other end."""

    @property
    def is_open(self) -> bool:
        """Messages can be sent."""

    @property
    def buffered_bytes(self) -> int:
        """Bytes given to `send` that the kernel has not taken yet."""

    @property
    def clock(self) -> ClockDifference:
        """How far the peer's clock is from ours."""

    def send(self, message: Message) -> None:
        """Send a message, at once or as soon as the peer reads; never blocks. On a closed stream: nothing."""

    def close(self) -> None:
        """Close after what was sent is flushed; the receiver gets `closed`."""


class Receiver(Protocol):
    """What becomes of a stream: plain callbacks in the event loop. `opened` comes first, `closed` last."""

    def opened(self, stream: Stream) -> None:
        """The handshake is done; `stream.peer` is known."""

    def received(self, stream: Stream, message: AnyMessage) -> None:
        """The peer sent a message."""

    def closed(self, stream: Stream, reason: str) -> None:
        """The stream ended, whoever ended it."""

    def stalled(self, stream: Stream) -> None:
        """Unsent bytes passed the limit: the peer does not read."""

    def resumed(self, stream: Stream) -> None:
        """A stalled peer reads again."""


class Registry(Protocol):
    """Who knows all streams of a listener."""

    def admit(self, stream: "SocketStream", peer: Peer) -> None:
        """A peer has proved itself; raises `HandshakeError` if its epoch is too old."""

    def forget(self, stream: "SocketStream") -> None:
        """The connection is gone, whether or not it opened."""


class SocketStream(asyncio.Protocol):
    """A stream over a socket. `registry` is None at the end that connected, `secured` where no TLS is spoken."""

    def __init__(
        self,
        handshake: ListenerHandshake | ConnectorHandshake,
        receiver: Receiver,
        *,
        max_frame_bytes: int,
        buffer_bytes: int,
        silence_s: float = SILENCE_S,
        secured: tls.Secured | None = None,
        registry: Registry | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.clock = ClockDifference()
        self._now_ns = now_ns
        self._num_pings = 0
        self._ping: asyncio.TimerHandle | None = None
        self._silence_s = silence_s
        self._heard = True
        """Bytes came since the last ping."""
        self._num_unheard = 0
        """Pings in a row after which nothing came."""
        self._shares_clock = False
        self._num_ignored = 0
        self.peer = Peer("unknown")
        self.is_open = False
        self.was_open = False
        """The handshake was completed once."""
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Resolves to the reason when the connection is gone, even if it never opened."""
        self._handshake: ListenerHandshake | ConnectorHandshake | None = handshake
        self._receiver = receiver
        self._registry = registry
        self.secured = secured
        self._max_frame_bytes = max_frame_bytes
        self._buffer_bytes = buffer_bytes
        self._frames = FrameBuffer(MAX_HANDSHAKE_FRAME_BYTES)
        self._transport: asyncio.Transport | None = None
        self._timeout: asyncio.TimerHandle | None = None
        self._flush: asyncio.TimerHandle | None = None
        """While it closes."""
        self._stalled = False
        self._reason = ""
        """Why this end closed; empty while it has not."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._buffer_bytes)
        connection = transport.get_extra_info("ssl_object")
        if connection is not None and self.secured is not None and self._handshake is not None:
            self._handshake.bind(tls.binding(connection, self.secured.certificate))
        loop = asyncio.get_running_loop()
        self._timeout = loop.call_later(HANDSHAKE_S, self.fail, f"no handshake within {HANDSHAKE_S:g} s")
        if isinstance(self._handshake, ListenerHandshake):
            self._transport.write(encode_frame(self._handshake.challenge))

    def data_received(self, data: bytes) -> None:
        """Hand on every message that `data` completes."""
        self._heard = True
        try:
            for frame in self._frames.feed(data):
                try:
                    message = decode_message(frame)
                except UnknownMessageError as error:
                    if self._handshake is not None:
                        raise
                    self._ignore(error)
                    continue
                if self._handshake is not None:
                    self._shake(self._handshake, message)
                elif isinstance(message, Ping | Pong):
                    self._compare(message)
                else:
                    self._receiver.received(self, message)
                if self._reason:
                    return
        except StreamError as error:
            self.fail(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the receiver, once."""
        self._transport = None
        reason = tls.sentence(exc) if isinstance(exc, OSError) else str(exc or "closed by the peer")
        if exc is None and self.secured is not None and isinstance(self._handshake, ConnectorHandshake):
            # TLS 1.3 is done for us before the listener has looked at our certificate, and its word is lost on the way.
            reason += " before we were let in: if it refuses our certificate, its log says why"
        self._end(reason)
        if not self.ended.done():
            self.ended.set_result(self._reason)

    def pause_writing(self) -> None:
        """The peer does not read."""
        self._stalled = True
        if self.is_open:
            self._receiver.stalled(self)

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._stalled = False
        if self.is_open:
            self._receiver.resumed(self)

    @property
    def is_connected(self) -> bool:
        """There is a connection, open or not yet."""
        return self._transport is not None

    @property
    def buffered_bytes(self) -> int:
        """Bytes given to `send` that the kernel has not taken yet."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def send(self, message: Message) -> None:
        """Send a message; never blocks."""
        transport = self._transport
        if transport is None or not self.is_open:
            return
        transport.write(encode_frame(message))
        if self._stalled and transport.get_write_buffer_size() > OVERRUN * self._buffer_bytes:
            self.fail(f"{transport.get_write_buffer_size()} bytes were sent and not read")

    def close(self) -> None:
        """Flush, then close."""
        self._reason = self._reason or "closed by this process"
        if self._transport is not None:
            self._transport.close()
            if self._flush is None:
                # A peer that reads no more must not keep what ends with the stream from ending.
                self._flush = asyncio.get_running_loop().call_later(FLUSH_S, self._transport.abort)
        elif not self.ended.done():
            self.ended.set_result(self._reason)

    async def shut(self) -> None:
        """Close and wait until the connection is gone; a peer that does not read is cut off after a moment."""
        self.close()
        await self.ended

    def fail(self, reason: str) -> None:
        """Log the reason and cut the connection; the receiver is told when it is gone."""
        if self._transport is not None and not self._reason:
            log.warning("stream of %s %s closed: %s", self.peer.service, self.peer.instance, reason)
            self._reason = reason
            self._transport.abort()

    def supersede(self) -> None:
        """End at once: the peer has opened a newer stream, and `closed` of this one must come before its `opened`."""
        self._end("replaced by a newer connection of the same instance")
        if self._transport is not None:
            self._transport.abort()

    def _shake(self, handshake: ListenerHandshake | ConnectorHandshake, message: AnyMessage) -> None:
        assert self._transport is not None  # noqa: S101  bytes come only while connected
        if isinstance(handshake, ListenerHandshake):
            peer, welcome = handshake.answer(message)
            self._check_certificate(peer)
            if self._registry is not None:
                self._registry.admit(self, peer)
            self._transport.write(encode_frame(welcome))
            self._open(peer)
        elif handshake.challenged:
            peer = handshake.finish(message)
            self._check_certificate(peer)
            self._open(peer)
        else:
            self._transport.write(encode_frame(handshake.answer(message)))

    def _check_certificate(self, peer: Peer) -> None:
        if self._transport is not None and (secured := self._transport.get_extra_info("ssl_object")) is not None:
            tls.check_name(secured, peer.service)

    def _open(self, peer: Peer) -> None:
        assert self._timeout is not None  # noqa: S101  set when the connection was made
        self._timeout.cancel()
        self._handshake = None
        self._frames.max_frame_bytes = self._max_frame_bytes
        self.peer, self.is_open, self.was_open = peer, True, True
        self._shares_clock = self._transport is not None and _is_local(self._transport)
        if peer.protocol > 1 or not self._shares_clock:
            self._ask()
        self._receiver.opened(self)

    def _ask(self) -> None:
        """Ask for a sign of life and compare clocks: often at first where they differ, to find a short way soon."""
        if self.secured is not None and self.secured.is_outdated():
            self.fail(OUTDATED)
            return
        pings = self.peer.protocol > 1
        # Pings are counted, not seconds: a loop that was held up itself must not take its peers for silent. One that
        # is alive pings, too: what it says is never stuck behind what it has not read.
        self._num_unheard = 0 if self._heard else self._num_unheard + 1
        if pings and self._num_unheard * PING_S >= self._silence_s:
            self.fail(f"silent for {self._silence_s:g} s")
            return
        self.send(Ping(self._now_ns()))
        self._num_pings += 1
        if not self._shares_clock and self._num_pings < FIRST_PINGS:
            pause_s = FIRST_PING_S
        else:
            pause_s, self._heard = PING_S if pings else CLOCK_S, False
        self._ping = asyncio.get_running_loop().call_later(pause_s, self._ask)

    def _compare(self, message: Ping | Pong) -> None:
        now_ns = self._now_ns()
        if isinstance(message, Ping):
            self.send(Pong(message.sent_ns, now_ns, self._now_ns()))
        elif not self._shares_clock:
            self.clock.exchanged(message.sent_ns, message.received_ns, message.answered_ns, now_ns)

    def _ignore(self, error: UnknownMessageError) -> None:
        """A neighbour of another version says what is not known here: the rest of its words are."""
        self._num_ignored += 1
        if is_milestone(self._num_ignored):
            log.warning(
                "%s %s sent %s; %d ignored so far", self.peer.service, self.peer.instance, error, self._num_ignored
            )

    def _end(self, reason: str) -> None:
        self._reason = self._reason or reason
        for timer in (self._timeout, self._ping, self._flush):
            if timer is not None:
                timer.cancel()
        if self._registry is not None:
            self._registry.forget(self)
        if self.is_open:
            self.is_open = False
            self._receiver.closed(self, self._reason)


def _is_local(transport: asyncio.Transport) -> bool:
    """Both ends are on one host, whose processes share a clock."""
    connected = transport.get_extra_info("socket")
    return connected is not None and connected.family == socket.AF_UNIX
