"""Two stream ends joined within one event loop: the double that tests of services use instead of sockets."""

import asyncio
from collections import deque

from services.clocks import ClockDifference
from services.framing import HEADER_BYTES, Identity, Peer, decode_message, encode_frame
from services.streams import Receiver
from services.wire_parts import Message


def inproc_pair(
    receiver_a: Receiver,
    receiver_b: Receiver,
    *,
    identity_a: Identity | None = None,
    identity_b: Identity | None = None,
    buffer_bytes: int = 8 * 2**20,
) -> "tuple[InprocStream, InprocStream]":
    """Two ends joined within the running loop, for tests; both receivers get `opened` before this returns."""
    a = InprocStream(receiver_a, identity_b or Identity("b"), buffer_bytes)
    b = InprocStream(receiver_b, identity_a or Identity("a"), buffer_bytes)
    a.other, b.other = b, a
    receiver_a.opened(a)
    receiver_b.opened(b)
    return a, b


class InprocStream:
    """An end of `inproc_pair`. Messages pass through the codec and arrive in a later turn of the loop, in order."""

    other: "InprocStream"

    def __init__(self, receiver: Receiver, peer: Peer, buffer_bytes: int) -> None:
        self.peer = peer
        self.clock = ClockDifference()
        self.is_open = True
        self.is_reading = True
        self._receiver = receiver
        self._buffer_bytes = buffer_bytes
        self._unread: deque[bytes] = deque()
        """What the other end sent."""
        self._stalled = False

    @property
    def buffered_bytes(self) -> int:
        """Bytes given to `send` that the other end has not read yet."""
        return self.other.unread_bytes

    @property
    def unread_bytes(self) -> int:
        """Bytes that the other end sent and this one has not read yet."""
        return sum(map(len, self._unread))

    def send(self, message: Message) -> None:
        """Send a message; never blocks. On a closed stream: nothing."""
        if not self.is_open:
            return
        self.other.arrive(encode_frame(message))
        if self.buffered_bytes > self._buffer_bytes and not self._stalled:
            self._stalled = True
            self._receiver.stalled(self)

    def close(self) -> None:
        """Close both ends after what was sent has arrived."""
        loop = asyncio.get_running_loop()
        loop.call_soon(self.end, "closed by this process")
        loop.call_soon(self.other.end, "closed by the peer")

    def pause_reading(self) -> None:
        """Leave what the other end sends unread."""
        self.is_reading = False

    def resume_reading(self) -> None:
        """Read again."""
        self.is_reading = True
        asyncio.get_running_loop().call_soon(self._read)

    def arrive(self, frame: bytes) -> None:
        """The other end sent a frame."""
        self._unread.append(frame)
        asyncio.get_running_loop().call_soon(self._read)

    def drained(self) -> None:
        """The other end has read everything."""
        if self._stalled and self.is_open:
            self._stalled = False
            self._receiver.resumed(self)

    def end(self, reason: str) -> None:
        """The stream is gone."""
        if self.is_open:
            self.is_open = False
            self._receiver.closed(self, reason)

    def _read(self) -> None:
        while self._unread and self.is_reading and self.is_open:
            frame = self._unread.popleft()
            self._receiver.received(self, decode_message(memoryview(frame)[HEADER_BYTES:]))
        if not self._unread:
            self.other.drained()
