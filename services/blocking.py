"""A stream over a blocking socket, for a process without an event loop (the executor).

A thread of its own pings the peer each second: a process that computes for long is busy, not dead, and its peer must
be able to tell. Whether the engine makes progress is not its matter.
"""

import logging
import select
import socket
import ssl
import threading
import time
from typing import Self

from services import tls
from services.framing import (
    MAX_HANDSHAKE_FRAME_BYTES,
    ConnectorHandshake,
    FrameBuffer,
    Identity,
    Peer,
    StreamError,
    UnixAddress,
    UnknownMessageError,
    decode_message,
    encode_frame,
    parse_address,
)
from services.streams import HANDSHAKE_S, PING_S, SILENCE_S
from services.wire import AnyMessage
from services.wire_operator import Ping, Pong
from services.wire_parts import Message

RECEIVE_BYTES = 256 * 2**10

log = logging.getLogger(__name__)


class StreamClosedError(StreamError):
    """The peer closed the stream."""


class BlockingStream:
    """The connecting end of a stream. Every call may raise `StreamError` (malformed, refused) or `OSError`."""

    def __init__(
        self,
        connected: socket.socket,
        identity: Identity,
        secret: bytes,
        *,
        max_frame_bytes: int,
        silence_s: float,
        secured: tls.Secured | None = None,
    ) -> None:
        """Run the handshake on a connected socket; over TLS our certificate is part of the proof."""
        self._socket = connected
        self._sending = threading.Lock()
        self._closed = threading.Event()
        self._early: list[AnyMessage] = []
        """What came right behind the handshake."""
        self.lost_s: float | None = None
        """When the peer turned out to have gone, on this process's clock; None: it has not, as far as pings tell."""
        self._ended = "closed by the peer"
        """Why there will be nothing more to read."""
        self._silence_s = HANDSHAKE_S
        self._encrypted: ssl.SSLSocket | None = None
        self._frames = FrameBuffer(MAX_HANDSHAKE_FRAME_BYTES)
        self.peer = Peer("unknown")
        connected.settimeout(HANDSHAKE_S)
        handshake = ConnectorHandshake(identity, secret)
        encrypted = self._encrypted = connected if isinstance(connected, ssl.SSLSocket) else None
        if encrypted is not None and secured is not None:
            handshake.bind(tls.binding(encrypted, secured.certificate))
        self.send(handshake.answer(self._one()))
        self.peer = handshake.finish(self._one())
        if encrypted is not None:
            tls.check_name(encrypted, self.peer.service)
        self._frames.max_frame_bytes = max_frame_bytes
        connected.settimeout(None)
        if self.peer.protocol > 1:
            self._silence_s = silence_s
            connected.settimeout(silence_s)
            threading.Thread(target=self._keep_pinging, args=(secured,), name="pings", daemon=True).start()

    @classmethod
    def connect(
        cls,
        address: str,
        identity: Identity,
        secret: bytes,
        *,
        max_frame_bytes: int,
        silence_s: float = SILENCE_S,
        certificates: tls.Certificates | None = None,
        allow_plaintext: bool = False,
    ) -> Self:
        """Connect and shake hands; over TCP with TLS where there are certificates.

        Raises:
            AddressError: the address is malformed.
        """
        where = parse_address(address, allow_plaintext=allow_plaintext or certificates is not None)
        secured = None
        if isinstance(where, UnixAddress):
            connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            connected = socket.create_connection(where, timeout=HANDSHAKE_S)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if isinstance(where, UnixAddress):
                connected.connect(str(where.path))
            elif certificates is not None:
                secured = tls.Secured(certificates)
                connected = secured.connecting.wrap_socket(connected)
            return cls(
                connected,
                identity,
                secret,
                max_frame_bytes=max_frame_bytes,
                silence_s=silence_s,
                secured=secured,
            )
        except BaseException:
            connected.close()
            raise

    def send(self, message: Message) -> None:
        """Send a message; returns when the kernel has it. A peer of protocol 2 that reads nothing for `silence_s` is
        left.
        """
        frame = encode_frame(message)
        with self._sending:
            self._socket.sendall(frame)

    def wait(self) -> list[AnyMessage]:
        """The messages that came, at least one; waits for it."""
        messages, self._early = self._early, []
        while not messages:
            messages = self._decode(self._receive())
        return messages

    def poll(self, timeout_s: float = 0.0) -> list[AnyMessage]:
        """The messages that are there already or come within the timeout, maybe none."""
        if self._early:
            return self.wait()
        return self._decode(self._receive()) if self._readable(timeout_s) else []

    def close(self) -> None:
        """Close the socket."""
        self._closed.set()
        self._socket.close()

    def _keep_pinging(self, secured: tls.Secured | None) -> None:
        """Until the stream is closed; whoever waits for messages hears why it broke."""
        try:
            while not self._closed.wait(PING_S):
                if secured is not None and secured.is_outdated():
                    self._ended = tls.OUTDATED
                    # The plain socket's: TLS's own would have whoever waits read what is not encrypted.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
                self.send(Ping(time.monotonic_ns()))
        except OSError:
            self.lost_s = time.monotonic()

    def _receive(self) -> bytes:
        try:
            if self._encrypted is None:
                return self._socket.recv(RECEIVE_BYTES)
            # TLS's state is one for both ways, and the pings come from another thread: nobody waits in it.
            if self._readable(self._silence_s):
                with self._sending:
                    return self._encrypted.recv(RECEIVE_BYTES)
            raise TimeoutError
        except TimeoutError as error:
            raise StreamClosedError(f"the peer was silent for {self._silence_s:g} s") from error

    def _readable(self, timeout_s: float) -> bool:
        # What is left of a record of TLS is nothing that the kernel still has.
        if self._encrypted is not None and self._encrypted.pending():
            return True
        readable, _, _ = select.select([self._socket], [], [], timeout_s)
        return bool(readable)

    def _decode(self, data: bytes) -> list[AnyMessage]:
        if not data:
            raise StreamClosedError(self._ended)
        received_ns = time.monotonic_ns()
        messages: list[AnyMessage] = []
        for frame in self._frames.feed(data):
            try:
                message = decode_message(frame)
            except UnknownMessageError as error:
                log.warning("%s %s sent %s, which is ignored", self.peer.service, self.peer.instance, error)
                continue
            if isinstance(message, Ping):
                self.send(Pong(message.sent_ns, received_ns, time.monotonic_ns()))
            elif not isinstance(message, Pong):
                messages.append(message)
        return messages

    def _one(self) -> AnyMessage:
        first, *self._early = self.wait()
        return first
