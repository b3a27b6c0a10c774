"""Connections without a kernel between a service and the neighbours that the fuzz plays, and what it asks of a place.

Owns the handshakes. Knows no service and no mutation.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from engine.interface import EngineInfo, Sampling
from ops.bench.fuzz_frames import Pool
from services.framing import (
    ConnectorHandshake,
    FrameBuffer,
    Identity,
    ListenerHandshake,
    decode_message,
    encode_frame,
)
from services.settings import Deployment, TelemetrySettings, TrafficSettings
from services.stream_settings import StreamSettings
from services.streams import Receiver, SocketStream
from services.transport import Listener
from services.wire import (
    AnyMessage,
    Submit,
)
from services.wire_parts import Message

SECRET = b"fuzz" * 8
MAX_FRAME_BYTES = 2**20
POLICY = Path(__file__).resolve().parents[2] / "policies" / "fairlead.yaml"
DEMO = EngineInfo("demo", "Llama", 1, "float32", "cpu", "none", 64, 16, 512, 1000)
GATEWAY = 7
MOST_LIVE = 24
"""Requests at a time: enough to be lied about."""


class Wire(asyncio.Transport):
    """A transport without a kernel: what is written is kept until somebody reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.is_over = False

    def write(self, data: Any) -> None:
        """Keep it."""
        if not self.is_over:
            self.written.append(bytes(data))

    def close(self) -> None:
        """Over; the protocol hears of it from whoever drives."""
        self.is_over = True

    abort = close

    def is_closing(self) -> bool:
        """Over."""
        return self.is_over

    def get_write_buffer_size(self) -> int:
        """Everything is read at once."""
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Never full."""


class Neighbour:
    """A connection with a service, whose other end the fuzz plays; made again when the service has ended it."""

    def __init__(self, identity: Identity, make: Callable[[], SocketStream], *, listens: bool) -> None:
        self.identity = identity
        self._make = make
        self._listens = listens
        self._frames = FrameBuffer(MAX_FRAME_BYTES * 64)
        self.heard: deque[AnyMessage] = deque()
        self.num_connections = 0
        self.wire = Wire()
        self.stream: SocketStream | None = None

    def connect(self) -> None:
        """A connection whose handshake is still to come."""
        self.close()
        self.num_connections += 1
        self._frames = FrameBuffer(MAX_FRAME_BYTES * 64)
        self.heard.clear()
        self.wire, self.stream = Wire(), self._make()
        self.stream.connection_made(self.wire)

    def shake(self) -> None:
        """Prove that we know the secret, as a start that is newer than the last."""
        me = msgspec.structs.replace(self.identity, epoch=self.num_connections + self.identity.epoch)
        if self._listens:
            shaking = ListenerHandshake(me, SECRET)
            self.say(encode_frame(shaking.challenge))
            _, welcome = shaking.answer(self._next())
            self.say(encode_frame(welcome))
        else:
            handshake = ConnectorHandshake(me, SECRET)
            self.say(encode_frame(handshake.answer(self._next())))
            handshake.finish(self._next())
        self.listen()

    def say(self, data: bytes) -> None:
        """Bytes arrive at the service."""
        if self.stream is not None:
            self.stream.data_received(data)

    def listen(self) -> None:
        """Take in what the service said; drop a connection that it ended."""
        written, self.wire.written = self.wire.written, []
        for data in written:
            self.heard.extend(decode_message(frame) for frame in self._frames.feed(data))
        if self.wire.is_over:
            self.close()

    @property
    def is_open(self) -> bool:
        """The service has not ended the connection."""
        return self.stream is not None

    def close(self) -> None:
        """The connection is gone."""
        if self.stream is not None:
            self.stream.connection_lost(None)
            self.stream = None

    def _next(self) -> AnyMessage:
        self.listen()
        return self.heard.popleft()


class Place(Protocol):
    """A service under fire."""

    name: str
    neighbours: list[Neighbour]
    pool: Pool

    async def open(self, folder: Path) -> None:
        """Start it, honestly connected."""

    def honest(self, neighbour: Neighbour, rng: random.Random) -> Message:
        """What this neighbour might rightly say now."""

    def join(self, neighbour: Neighbour) -> None:
        """Connect it and say what must be said first."""

    def check(self) -> None:
        """Raise if the service is no longer what it should be."""

    async def close(self) -> None:
        """Stop it."""


def deployment_in(folder: Path) -> Deployment:
    """Of the demo model, with nothing recorded."""
    streams = StreamSettings(max_frame_bytes=MAX_FRAME_BYTES)
    quiet = TelemetrySettings(tokens=False)
    made = Deployment(
        data=str(folder), policy=str(POLICY), streams=streams, telemetry=quiet, traffic=TrafficSettings(keep_s=0)
    ).resolved()
    Path(made.streams.secret_file).parent.mkdir(parents=True, exist_ok=True)
    Path(made.streams.secret_file).write_bytes(SECRET)
    Path(made.streams.secret_file).chmod(0o600)
    return made


def accepted(receiver: Receiver, service: str, listener: Listener) -> Callable[[], SocketStream]:
    """Connections to a listener of this service."""

    def make() -> SocketStream:
        return listener.expect(
            SocketStream(
                ListenerHandshake(Identity(service), SECRET),
                receiver,
                max_frame_bytes=MAX_FRAME_BYTES,
                buffer_bytes=2**20,
                silence_s=1e9,
                registry=listener,
            )
        )

    return make


def linked(receiver: Receiver, identity: Identity) -> Callable[[], SocketStream]:
    """Connections that this service makes."""

    def make() -> SocketStream:
        return SocketStream(
            ConnectorHandshake(identity, SECRET),
            receiver,
            max_frame_bytes=MAX_FRAME_BYTES,
            buffer_bytes=2**20,
            silence_s=1e9,
        )

    return make


def some_submit(rng: random.Random, request: int) -> Submit:
    """A small request."""
    sampling = [Sampling(seed=each, logprobs=rng.choice((None, None, 2))) for each in range(rng.choice((1, 1, 1, 3)))]
    return Submit(
        request=request,
        tenant=rng.choice(("acme", "free")),
        tier="free",
        prompt=np.arange(rng.randrange(1, 60), dtype=np.int32).tobytes(),
        max_output_tokens=rng.randrange(1, 12),
        sampling=sampling,
        pooling=rng.choice(("", "", "", "mean")) if len(sampling) == 1 else "",
    )
