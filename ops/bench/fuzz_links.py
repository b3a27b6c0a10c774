"""The ends that only connect, under the fuzz: the gateway's links, and an executor with a synthetic engine.

Owns honest traffic enough for a lie to reach deep. Knows no mutation.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np

from engine.interface import EngineSettings, Sampling, SequenceStart
from engine.paced import PacedEngine
from engine.tokenizer import Tokenizer
from ops.bench.fuzz_frames import Pool
from ops.bench.fuzz_neighbours import (
    GATEWAY,
    MAX_FRAME_BYTES,
    MOST_LIVE,
    POLICY,
    SECRET,
    Neighbour,
    Wire,
    deployment_in,
    linked,
    some_submit,
)
from services.blocking import BlockingStream
from services.executor.service import Executor
from services.framing import (
    HEADER_BYTES,
    Identity,
    ListenerHandshake,
    StreamError,
    decode_message,
    encode_frame,
)
from services.gateway.backend import Backend
from services.gateway.responses import OpenAiShape
from services.gateway.streams import Answer
from services.gateway.tracing import Origin, Tracing
from services.hearing import Hearing
from services.runtime import ReadyFile
from services.streams import SocketStream
from services.traffic.rows import RequestRow
from services.wire import (
    Admitted,
    Capacity,
    ForgetMessage,
    PolicyNow,
    Queued,
    Refused,
    RequestEnded,
    StepMessage,
    TokenFrame,
)
from services.wire_parts import Message


class GatewayPlace:
    """The gateway's side of its links to admission and scheduler, with answers that wait."""

    name = "gateway"

    def __init__(self) -> None:
        self.pool = Pool()
        self.neighbours: list[Neighbour] = []
        self._step = 0
        self._document = POLICY.read_bytes()

    async def open(self, folder: Path) -> None:
        """Without HTTP."""
        self._texts = Tokenizer.load(deployment_in(folder).model_folder)
        self._backend = Backend(self._texts, _written_nowhere, Tracing("demo", None), 1.0)
        self._backend.gateway = GATEWAY  # drawn at random, and a seed must make the same frames again
        link = linked(Hearing("gateway", self._backend), Identity("gateway", str(self._backend.gateway), 1))
        names = [("admission", "0"), ("admission", "1"), ("scheduler", "0")]
        self.neighbours = [Neighbour(Identity(*name, 1), link, listens=True) for name in names]
        for neighbour in self.neighbours:
            self.join(neighbour)

    def join(self, neighbour: Neighbour) -> None:
        """Connect and say what must be said first."""
        neighbour.connect()
        neighbour.shake()
        neighbour.say(encode_frame(Capacity(1, 1024, 512)))
        if neighbour.identity.service == "admission" and neighbour.num_connections % 50 == 1:
            neighbour.say(encode_frame(PolicyNow(1, self._document)))

    def honest(self, neighbour: Neighbour, rng: random.Random) -> Message:
        """Releases and tokens."""
        neighbour.heard.clear()
        running = self._backend.running
        while len(running) < MOST_LIVE // 2:
            answer = Answer(OpenAiShape(answer_id="a", created=1, model="demo", include_usage=False), 3)
            submit = some_submit(rng, 0)
            self._backend.submit([submit], answer, rng.choice(((), ("x",))), Origin())
            if not running:
                break
        self.pool.requests = list(running)
        request = rng.choice(self.pool.requests or [0])
        if neighbour.identity.service == "admission":
            if rng.random() < 0.01:
                return PolicyNow(rng.randrange(3), self._document)
            return rng.choice(
                (
                    Admitted(request, "paid", 1, 2, 3),
                    Queued(request, 1, 0.5),
                    Refused(request, "queue_full", "full", 1.0),
                )
            )
        self._step += 1
        ids = np.array(rng.sample(self.pool.requests, min(4, len(self.pool.requests))), np.int64)
        tokens = np.array([rng.randrange(1000) for _ in ids], np.int32)
        finish = np.array([rng.choice((0, 0, 0, 1, 2)) for _ in ids], np.int8)
        if rng.random() < 0.1:
            return RequestEnded(request, "error", 1, "internal_error", "no")
        stamps = ids.tobytes()
        return TokenFrame(self._step, 0, 1, ids.tobytes(), tokens.tobytes(), finish.tobytes(), stamps, 1, 2, 3, 4)

    def check(self) -> None:
        """Every open output belongs to a running request."""
        running = {sequence for each in self._backend.running.values() for sequence in each.sequences}
        if not set(self._backend._pump.choices) <= running:  # noqa: SLF001  an invariant looks inside
            raise AssertionError("outputs of requests that are over are kept")

    async def close(self) -> None:
        """Stop it."""
        for neighbour in self.neighbours:
            neighbour.close()


class ExecutorPlace:
    """An executor with a synthetic engine, whose scheduler the fuzz plays."""

    name = "executor"

    def __init__(self) -> None:
        self.pool = Pool()
        self.neighbours: list[Neighbour] = []
        self._sequence = 0

    async def open(self, folder: Path) -> None:
        """Without its socket."""
        deployment = deployment_in(folder)
        settings = EngineSettings(
            kind="paced", paced_step_s=0.0, kv_block_tokens=16, kv_pool_tokens=1024, max_steps_in_flight=1
        )
        self._executor = Executor(
            PacedEngine(settings, 1000, 512), deployment, ReadyFile(Path(deployment.run), "executor")
        )
        self.neighbours = [Fed(self._executor)]

    def join(self, neighbour: Neighbour) -> None:
        """Connect; nothing is said first."""
        neighbour.connect()
        neighbour.shake()

    def honest(self, neighbour: Neighbour, rng: random.Random) -> Message:
        """Steps of one prompt each, seldom of what the last one left."""
        del neighbour
        self._sequence += 1
        self.pool.requests = self.pool.steps = [self._sequence, self._sequence - 1]
        start = SequenceStart(self._sequence, bytes(16), 4, Sampling(), pooling=rng.choice(("", "", "mean")))
        zero, one, four = (np.array([each], np.int32).tobytes() for each in (0, 1, 4))
        sequence = np.array([self._sequence], np.int64).tobytes()
        released = [self._sequence - 1]
        if rng.random() < 0.1:
            return ForgetMessage(released)
        return StepMessage(self._sequence, sequence, zero, four, b"\1", one, zero, [start], released)

    def check(self) -> None:
        """What ended is held no more."""
        if len(self._executor._held) > 10_000:  # noqa: SLF001  an invariant looks inside
            raise AssertionError("the executor holds what has ended")

    async def close(self) -> None:
        """Nothing runs."""


class Fed(Neighbour):
    """The executor's connection: served until the bytes are used up, and again when there are more."""

    def __init__(self, executor: Executor) -> None:
        super().__init__(Identity("scheduler", protocol=1), _nobody, listens=True)
        self._executor = executor
        self._socket = FedSocket(self.identity)
        self._served: BlockingStream | None = None

    def connect(self) -> None:
        """Another socket."""
        self.num_connections += 1
        self._socket, self._served = FedSocket(self.identity), None

    def shake(self) -> None:
        """As the executor does it; a scheduler of protocol 1 has no thread that pings it."""
        identity = Identity("executor", "0", self.num_connections)
        connected: Any = self._socket
        self._served = BlockingStream(connected, identity, SECRET, max_frame_bytes=MAX_FRAME_BYTES, silence_s=1e9)

    def say(self, data: bytes) -> None:
        """Bytes arrive; before the handshake they are its answer."""
        self._socket.arriving.append(data)
        try:
            if self._served is None:
                self.shake()
            else:
                self._executor._serve(self._served)  # noqa: SLF001  the part of its life that reads
        except UsedUp:
            return
        except (OSError, StreamError):
            self._executor._reset()  # noqa: SLF001  as it does before it connects again
            self._served = None
            self.wire.is_over = True

    def listen(self) -> None:
        """Nobody reads what it says."""

    def close(self) -> None:
        """Nothing is open."""
        self._served, self.wire = None, Wire()

    @property
    def is_open(self) -> bool:
        """It has not ended the connection."""
        return self._served is not None


class UsedUp(BaseException):
    """Nothing more has arrived."""


class FedSocket:
    """A socket that gives the bytes that were put in it; before any are, it shakes hands as a scheduler."""

    def __init__(self, identity: Identity) -> None:
        self.arriving: list[bytes] = []
        self._shaking = ListenerHandshake(identity, SECRET)
        self._arrived: list[bytes] = [encode_frame(self._shaking.challenge)]
        self._is_shaken = False

    def recv(self, most: int) -> bytes:
        """The next bytes."""
        del most
        if self.arriving:
            return self.arriving.pop(0)
        if self._arrived:
            return self._arrived.pop(0)
        raise UsedUp

    def sendall(self, data: bytes) -> None:
        """The first is its Hello."""
        if not self._is_shaken:
            self._is_shaken = True
            _, welcome = self._shaking.answer(decode_message(data[HEADER_BYTES:]))
            self._arrived.append(encode_frame(welcome))

    def settimeout(self, timeout_s: float | None) -> None:
        """It never waits."""

    def close(self) -> None:
        """Nothing is open."""


def _written_nowhere(row: RequestRow) -> None:
    del row


def _nobody() -> SocketStream:
    raise RuntimeError("an executor's stream is no SocketStream")
