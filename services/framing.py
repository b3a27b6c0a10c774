"""Frames and the handshake without I/O: what asyncio streams and the executor's blocking sockets share.

A frame is a 4-byte little-endian length and a msgpack message. Owns bytes, proofs and addresses; knows no socket, no
event loop and no clock. Errors are raised for the caller to close that one connection.

Two versions side by side: each end marks its nonce with the newest protocol that it speaks, both speak the older of the
two, and one version back is always spoken. The nonces are proved, so that nobody in between can lower it. Protocol 1
marks nothing and accepts nothing but a 1, which is why `Challenge.protocol` stays 1 for ever. An upgrade therefore goes
one service after the other, in any order: an end of the new version sends an old neighbour nothing that it cannot read
(`Peer.protocol` says what that is), and speaks the new protocol with it from its next connection on.
"""

import hashlib
import hmac
import secrets
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from services.wire import KINDS, AnyMessage, decoder, encoder, kind_decoder
from services.wire_handshake import OLDEST_PROTOCOL, PROTOCOL, Challenge, Hello, Welcome
from services.wire_parts import Message

HEADER = struct.Struct("<I")
HEADER_BYTES = HEADER.size
NONCE_BYTES = 32
SPOKEN = struct.Struct("<6sH")
"""The end of a nonce: a mark, and the newest protocol that its maker speaks."""
SPOKEN_MARK = b"speaks"
SMALL_BYTES = 4096
"""Below this a copy costs less than a view."""
MAX_HANDSHAKE_FRAME_BYTES = 4096
"""Until the peer has proved itself, it cannot make us hold more than this."""
LONGEST_KIND = 40
"""Characters of an unknown one that are repeated in a sentence."""
MAX_UNIX_PATH_BYTES = 107
"""What the kernel's sockaddr_un holds, without the final zero."""


class StreamError(Exception):
    """This connection cannot go on; the sentence says why. Other connections are not concerned."""


class FrameError(StreamError):
    """Bytes that are no frame of ours, or a frame above the limit."""


class UnknownMessageError(FrameError):
    """A well-formed message of a kind that this version does not know. It concerns that message alone."""


class HandshakeError(StreamError):
    """The peer is not who it should be, or speaks another protocol."""


class AddressError(Exception):
    """An address that cannot be used; the sentence names it and says what is allowed."""


class Identity(msgspec.Struct, frozen=True):
    """Who is at an end of a stream. A larger epoch of the same (service, instance) replaces a smaller one."""

    service: str
    instance: str = "0"
    epoch: int = 0
    protocol: int = PROTOCOL
    """Of this process: the newest that it speaks. Of a peer: the one that is spoken with it."""


Peer = Identity


def encode_frame(message: Message) -> bytes:
    """A message as one frame."""
    body = encoder.encode(message)
    # Copying a body of a few kilobytes is cheaper than encoding behind a reserved header.
    return HEADER.pack(len(body)) + body


def decode_message(frame: bytes | memoryview) -> AnyMessage:
    """The message of a frame.

    Raises:
        UnknownMessageError: they are a message of a kind that nobody here knows.
        FrameError: the bytes are no message of ours.
    """
    try:
        return decoder.decode(frame)
    # Text that is no UTF-8 and nesting without end come as Python's own errors.
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        if (kind := _unknown_kind(frame)) is not None:
            raise UnknownMessageError(f"a message of the unknown kind `{kind}`") from error
        raise FrameError(f"malformed frame of {len(frame)} bytes: {error}") from error


def _unknown_kind(frame: bytes | memoryview) -> str | None:
    try:
        kind = kind_decoder.decode(frame).t
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return None if kind in KINDS else kind[:LONGEST_KIND]


class FrameBuffer:
    """Cuts a byte stream into frames. Large ones are handed out as views of the bytes received, uncopied."""

    def __init__(self, max_frame_bytes: int) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._partial = bytearray()
        """The beginning of a frame whose rest has not come yet."""
        self._needed_bytes = 0
        """Length of `_partial` from which it holds at least one whole frame, as far as known."""

    def feed(self, data: bytes) -> Iterable[bytes | memoryview]:
        """Take in `data`, give the frames it completes; to be exhausted before the next call.

        Raises:
            FrameError: a frame announces more than `max_frame_bytes`.
        """
        # What nearly always comes is one whole frame: it skips the general way, half of a round trip's Python.
        body = len(data) - HEADER_BYTES
        if not self._partial and 0 <= body <= self.max_frame_bytes and HEADER.unpack_from(data)[0] == body:
            return (data[HEADER_BYTES:],) if body < SMALL_BYTES else (memoryview(data)[HEADER_BYTES:],)
        return self._cut(data)

    def _cut(self, data: bytes) -> Iterator[memoryview]:
        received: bytes | bytearray = data
        if self._partial:
            self._partial += data
            if len(self._partial) < self._needed_bytes:
                return
            received, self._partial = self._partial, bytearray()
        view = memoryview(received)
        start, end = 0, len(view)
        needed = HEADER_BYTES
        while end - start >= HEADER_BYTES:
            (length,) = HEADER.unpack_from(view, start)
            if length > self.max_frame_bytes:
                raise FrameError(f"a frame of {length} bytes; at most {self.max_frame_bytes} are allowed")
            needed = HEADER_BYTES + length
            if end - start < needed:
                break
            yield view[start + HEADER_BYTES : start + needed]
            start += needed
            needed = HEADER_BYTES
        if start < end:
            self._partial += view[start:]
            self._needed_bytes = needed


class ListenerHandshake:
    """The listener's side: send `challenge`, feed the answer to `answer`, send what it returns."""

    def __init__(self, identity: Identity, secret: bytes) -> None:
        self.identity = identity
        self.challenge = Challenge(nonce=_nonce(identity.protocol))
        self._secret = secret

    def bind(self, certificates: bytes) -> None:
        """The stream is encrypted between these two certificates: prove what is of no use between others."""
        self._secret = hmac.digest(self._secret, b"tls" + certificates, hashlib.sha256)

    def answer(self, message: AnyMessage) -> tuple[Peer, Welcome]:
        """Who connected, and our proof in return.

        Raises:
            HandshakeError: not a Hello, another protocol, or a proof made with another secret.
        """
        if not isinstance(message, Hello):
            raise HandshakeError(f"the first message is a {type(message).__name__}, not a Hello")
        spoken = _common_protocol(self.identity.protocol, message.nonce)
        if message.protocol != spoken:
            raise HandshakeError(f"the peer speaks protocol {message.protocol} where both know {spoken}")
        peer = Peer(message.service, message.instance, message.epoch, spoken)
        expected = _proof(self._secret, b"connect", self.challenge.nonce, message.nonce, peer)
        if not hmac.compare_digest(expected, message.proof):
            raise HandshakeError(f"{peer.service} {peer.instance} does not know the secret of this deployment")
        me = self.identity
        proof = _proof(self._secret, b"listen", message.nonce, self.challenge.nonce, me)
        return peer, Welcome(service=me.service, instance=me.instance, epoch=me.epoch, proof=proof)


class ConnectorHandshake:
    """The connector's side: feed the Challenge to `answer`, send the Hello it returns, feed the Welcome to `finish`."""

    def __init__(self, identity: Identity, secret: bytes) -> None:
        self.identity = identity
        self._secret = secret
        self._nonce = _nonce(identity.protocol)
        self._challenge_nonce = b""
        self._spoken = OLDEST_PROTOCOL

    def bind(self, certificates: bytes) -> None:
        """The stream is encrypted between these two certificates: prove what is of no use between others."""
        self._secret = hmac.digest(self._secret, b"tls" + certificates, hashlib.sha256)

    @property
    def challenged(self) -> bool:
        """The Challenge has come and was answered."""
        return bool(self._challenge_nonce)

    def answer(self, message: AnyMessage) -> Hello:
        """Our proof.

        Raises:
            HandshakeError: not a Challenge, or another protocol.
        """
        if not isinstance(message, Challenge):
            raise HandshakeError(f"the first message is a {type(message).__name__}, not a Challenge")
        self._spoken = _common_protocol(self.identity.protocol, message.nonce)
        self._challenge_nonce = message.nonce
        me = self.identity
        proof = _proof(self._secret, b"connect", message.nonce, self._nonce, me)
        return Hello(self._spoken, me.service, me.instance, me.epoch, self._nonce, proof)

    def finish(self, message: AnyMessage) -> Peer:
        """Who we are connected to.

        Raises:
            HandshakeError: not a Welcome, or a proof made with another secret.
        """
        if not isinstance(message, Welcome):
            raise HandshakeError(f"the answer to our Hello is a {type(message).__name__}, not a Welcome")
        peer = Peer(message.service, message.instance, message.epoch, self._spoken)
        expected = _proof(self._secret, b"listen", self._nonce, self._challenge_nonce, peer)
        if not hmac.compare_digest(expected, message.proof):
            raise HandshakeError(f"{peer.service} {peer.instance} does not know the secret of this deployment")
        return peer


class UnixAddress(NamedTuple):
    """unix:///path"""

    path: Path


class TcpAddress(NamedTuple):
    """tcp://host:port"""

    host: str
    port: int


Address = UnixAddress | TcpAddress


def parse_address(address: str, *, allow_plaintext: bool = False) -> Address:
    """The parts of `unix:///path` or `tcp://host:port` ([host] for IPv6).

    Raises:
        AddressError: another form, a path the kernel cannot hold, or TCP beyond this machine without
            `allow_plaintext`, which whoever encrypts says, too.
    """
    scheme, _, rest = address.partition("://")
    if scheme == "unix" and rest.startswith("/"):
        if len(rest.encode()) > MAX_UNIX_PATH_BYTES:
            raise AddressError(
                f"{address}: a Unix socket path holds at most {MAX_UNIX_PATH_BYTES} bytes, this one has "
                f"{len(rest.encode())}; choose a shorter data folder"
            )
        return UnixAddress(Path(rest))
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not host or not port.isdecimal() or int(port) > 65535:
        raise AddressError(f"{address}: not an address; unix:///path and tcp://host:port are allowed")
    host = host.removeprefix("[").removesuffix("]")
    if host not in {"127.0.0.1", "::1", "localhost"} and not allow_plaintext:
        raise AddressError(
            f"{address}: without streams.tls, TCP is limited to 127.0.0.1, ::1 and localhost; set certificate, key and "
            "ca there, or streams.allow_plaintext: true where nobody else is on the network between the machines"
        )
    return TcpAddress(host, int(port))


def _proof(secret: bytes, side: bytes, theirs: bytes, ours: bytes, identity: Identity) -> bytes:
    name = f"{identity.service}/{identity.instance}/{identity.epoch}".encode()
    return hmac.digest(secret, side + theirs + ours + name, hashlib.sha256)


def _nonce(newest: int) -> bytes:
    return secrets.token_bytes(NONCE_BYTES - SPOKEN.size) + SPOKEN.pack(SPOKEN_MARK, newest)


def _common_protocol(own: int, nonce: bytes) -> int:
    """The newest protocol that this end and the maker of a nonce both speak.

    Raises:
        HandshakeError: there is none, or it is no nonce.
    """
    if len(nonce) != NONCE_BYTES:
        raise HandshakeError(f"a nonce of {len(nonce)} bytes instead of {NONCE_BYTES}")
    mark, newest = SPOKEN.unpack_from(nonce, NONCE_BYTES - SPOKEN.size)
    spoken = min(own, newest if mark == SPOKEN_MARK else 1)
    if spoken < OLDEST_PROTOCOL:
        raise HandshakeError(f"the peer speaks protocol {spoken}, this process {OLDEST_PROTOCOL} to {own}")
    return spoken


def is_milestone(count: int) -> bool:
    """1, 10, 100, ...: which of many warnings alike are said, so that a neighbour gone wrong does not fill the disk."""
    return str(count).strip("0") == "1"
