"""A stream over a blocking socket, for a process without an event loop (the executor)."""

import select
import socket
import time
from typing import Self

from services.framing import (
    MAX_HANDSHAKE_FRAME_BYTES,
    ConnectorHandshake,
    FrameBuffer,
    Identity,
    Peer,
    StreamError,
    UnixAddress,
    decode_message,
    encode_frame,
    parse_address,
)
from services.wire import AnyMessage
from services.wire_operator import Ping, Pong
from services.wire_parts import Message

RECEIVE_BYTES = 256 * 2**10
HANDSHAKE_S = 5.0


class StreamClosedError(StreamError):
    """The peer closed the stream."""


class BlockingStream:
    """The connecting end of a stream. Every call may raise `StreamError` (malformed, refused) or `OSError`."""

    def __init__(self, connected: socket.socket, identity: Identity, secret: bytes, max_frame_bytes: int) -> None:
        """Run the handshake on a connected socket."""
        self._socket = connected
        self._frames = FrameBuffer(MAX_HANDSHAKE_FRAME_BYTES)
        connected.settimeout(HANDSHAKE_S)
        handshake = ConnectorHandshake(identity, secret)
        self.send(handshake.answer(self._one()))
        self.peer: Peer = handshake.finish(self._one())
        connected.settimeout(None)
        self._frames.max_frame_bytes = max_frame_bytes

    @classmethod
    def connect(
        cls,
        address: str,
        identity: Identity,
        secret: bytes,
        *,
        max_frame_bytes: int,
        allow_plaintext: bool = False,
    ) -> Self:
        """Connect and shake hands.

        Raises:
            AddressError: the address is malformed.
        """
        where = parse_address(address, allow_plaintext=allow_plaintext)
        if isinstance(where, UnixAddress):
            connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            connected = socket.create_connection(where, timeout=HANDSHAKE_S)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if isinstance(where, UnixAddress):
                connected.connect(str(where.path))
            return cls(connected, identity, secret, max_frame_bytes)
        except BaseException:
            connected.close()
            raise

    def send(self, message: Message) -> None:
        """Send a message; returns when the kernel has it."""
        self._socket.sendall(encode_frame(message))

    def wait(self) -> list[AnyMessage]:
        """The messages that came, at least one; waits for it."""
        messages: list[AnyMessage] = []
        while not messages:
            messages = self._decode(self._socket.recv(RECEIVE_BYTES))
        return messages

    def poll(self, timeout_s: float = 0.0) -> list[AnyMessage]:
        """The messages that are there already or come within the timeout, maybe none."""
        readable, _, _ = select.select([self._socket], [], [], timeout_s)
        return self._decode(self._socket.recv(RECEIVE_BYTES)) if readable else []

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _decode(self, data: bytes) -> list[AnyMessage]:
        if not data:
            raise StreamClosedError("closed by the peer")
        received_ns = time.monotonic_ns()
        messages = [decode_message(frame) for frame in self._frames.feed(data)]
        for message in messages:
            if isinstance(message, Ping):
                self.send(Pong(message.sent_ns, received_ns, time.monotonic_ns()))
        return [message for message in messages if not isinstance(message, Ping)]

    def _one(self) -> AnyMessage:
        messages = self.wait()
        if len(messages) != 1:
            raise StreamError(f"{len(messages)} messages at once during the handshake")
        return messages[0]
