"""A real gateway on a free port, and a double of admission and scheduler at the other ends of its streams."""

import asyncio
import io
import socket
import time
from array import array
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import aiohttp
import msgspec
import numpy as np
import openai
import pytest
from random_checkpoint import write_random_checkpoint

from engine.chat_template import ChatTemplate
from engine.interface import Logprobs
from engine.tokenizer import Tokenizer
from policies.admission.limits.items import LimitState
from policies.commands import FinishReason
from policies.document.tenants import digest
from services.errors import RequestError
from services.gateway import service as gateway_service
from services.gateway.render_process import Conversation, render
from services.gateway.service import GatewayService
from services.settings import Deployment, HttpSettings, TelemetrySettings
from services.stream_settings import StreamSettings
from services.transport import Identity, Listener, Stream, listen
from services.wire import (
    Admitted,
    AnyMessage,
    Cancel,
    Capacity,
    InvalidRequest,
    PolicyNow,
    RequestEnded,
    Submit,
    TokenFrame,
)
from services.wire_parts import LogprobColumns, Message

KEY, REVOKED, ADMIN_KEY = "fl-test-key", "fl-test-revoked", "fl-admin-test"
SECRET = b"the secret of a test deployment"
POOL_TOKENS = 512
WAIT_S = 10.0
POLICY = b"""
version: 1
name: simple
classes: [{name: all, ttft_s: 1, tbt_s: 1}]
batching: {stages: [{decode: {}}, {prefill: {from: waiting}}]}
"""
TENANTS = f"""
version: 1
tenants:
  - name: acme
    tier: paid
    weight: 2
    keys:
      - {{id: one, sha256: {digest(KEY)}, project: web}}
      - {{id: two, sha256: {digest(REVOKED)}, revoked: true}}
  - {{name: operators, keys: [{{id: three, sha256: {digest(ADMIN_KEY)}, scope: admin}}]}}
"""


class RenderedHere:
    """Renders chats in this process: the one that the gateway starts takes a while, and has tests of its own."""

    def __init__(self, folder: Path, max_characters: int) -> None:
        self._template = ChatTemplate.load(folder)
        self._max_characters = max_characters

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def render(self, messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> str:
        assert self._template is not None
        prompt = render(self._template, Conversation(messages, list(tools)), self._max_characters)
        if prompt.problem:
            raise RequestError("invalid_value", f"messages: {prompt.problem}", param="messages")
        return prompt.text


class Setup(NamedTuple):
    """Of a stage, as a test's indirect parameter."""

    tracing: bool = False
    """With a keeper."""
    ahead_ns: int = 0
    """How far the clocks of admission and scheduler are ahead, on another host then."""
    http: Mapping[str, Any] = MappingProxyType({})
    """Settings of `http:` other than the stage's."""


class Backstage:
    """Plays admission and scheduler: keeps what the gateway sends, answers by `script` or as told."""

    def __init__(self, ahead_ns: int = 0) -> None:
        self.ahead_ns = ahead_ns
        self.capacity = Capacity(1, 4096, POOL_TOKENS)
        self.received_messages: list[tuple[str, AnyMessage]] = []
        self.streams: dict[str, Stream] = {}
        self.script: Callable[[Submit], None] = lambda submit: None
        self.count: Callable[[InvalidRequest], None] = lambda wrong: self.send(
            "admission", Admitted(wrong.request, "", 0, 0, 0)
        )
        self._listeners: dict[str, Listener] = {}
        self._changed = asyncio.Event()

    async def listen(self, service: str, folder: Path) -> str:
        """Returns the address."""
        side = Side(self, service)
        address = "tcp://127.0.0.1:0" if self.ahead_ns else f"unix://{folder}/{service}.sock"
        listener = self._listeners[service] = await listen(address, Identity(service), SECRET, side, now_ns=self.now_ns)
        return f"tcp://127.0.0.1:{listener.port}" if self.ahead_ns else address

    def now_ns(self) -> int:
        """The clock of the services that are played."""
        return time.monotonic_ns() + self.ahead_ns

    async def lose(self, service: str) -> None:
        await self._listeners.pop(service).close()
        await self.until(lambda: service not in self.streams)

    async def close(self) -> None:
        for service in list(self._listeners):
            await self._listeners.pop(service).close()

    def took(self, service: str, message: AnyMessage) -> None:
        self.received_messages.append((service, message))
        if isinstance(message, Submit):
            self.script(message)
        if isinstance(message, InvalidRequest):
            self.count(message)
        self.changed()

    def changed(self) -> None:
        self._changed.set()

    async def until(self, condition: Callable[[], Any]) -> Any:
        async with asyncio.timeout(WAIT_S):
            while not (found := condition()):
                self._changed.clear()
                await self._changed.wait()
        return found

    def all_of(self, kind: type[Any], service: str = "") -> list[Any]:
        return [
            message
            for sender, message in self.received_messages
            if isinstance(message, kind) and service in ("", sender)
        ]

    async def submitted(self, number: int = 1) -> list[Submit]:
        return await self.until(lambda: len(self.all_of(Submit)) >= number and self.all_of(Submit))

    async def cancelled(self, request: int) -> list[tuple[str, str]]:
        """Who was told, and the reason, once both were."""
        return await self.until(
            lambda: ([each for each in (self._cancels(request)) if len(self._cancels(request)) >= 2])
        )

    def _cancels(self, request: int) -> list[tuple[str, str]]:
        return sorted(
            (service, message.reason)
            for service, message in self.received_messages
            if isinstance(message, Cancel) and message.request == request
        )

    def send(self, service: str, message: Message) -> None:
        self.streams[service].send(message)

    def admit(self, submit: Submit) -> None:
        self.send("admission", Admitted(submit.request, "all", 1, 1, 2))

    def frame(
        self,
        rows: Sequence[tuple[int, int, int]],
        prefix_hits: Sequence[tuple[int, int]] = (),
        vectors: dict[int, bytes] | None = None,
        logprobs: LogprobColumns | None = None,
        *,
        chunks: dict[int, bytes] | None = None,
        returned_ns: int = 0,
    ) -> None:
        """Rows of (sequence, token, finish)."""
        sequences, tokens, finishes = zip(*rows, strict=True)
        self.send(
            "scheduler",
            TokenFrame(
                step=1,
                executor=0,
                revision=1,
                sequences=array("q", sequences).tobytes(),
                tokens=array("i", tokens).tobytes(),
                finish=array("b", finishes).tobytes(),
                ready_ns=array("q", [0] * len(rows)).tobytes(),
                planned_ns=0,
                launched_ns=0,
                computed_ns=0,
                returned_ns=returned_ns,
                chunks=chunks or {},
                prefix_hits=list(prefix_hits),
                vectors=vectors or {},
                logprobs=logprobs,
            ),
        )

    def speak(self, submit: Submit, tokens: Sequence[int], finish: FinishReason = FinishReason.LENGTH) -> None:
        """The same tokens for every choice, one step each, and the end of the request.

        Token number i has the log-probability -i / 8, and those asked for beside it are the tokens 300, 301 ... with
        -1, -2 ...
        """
        sequences = range(submit.request, submit.request + len(submit.sampling))
        for index, token in enumerate(tokens):
            last = finish if index == len(tokens) - 1 else 0
            rows = [(sequence, token, int(last)) for sequence in sequences]
            asked = [sampling.logprobs for sampling in submit.sampling]
            entries = [
                [(token, -index / 8), *((300 + rank, -1.0 - rank) for rank in range(count))]
                for count in asked
                if count is not None
            ]
            flat = [entry for each in entries for entry in each]
            logprobs = Logprobs(
                np.array([0 if count is None else 1 + count for count in asked], np.int8),
                np.array([each for each, _ in flat], np.int32),
                np.array([value for _, value in flat], np.float32),
            )
            self.frame(rows, logprobs=LogprobColumns.pack(logprobs) if flat else None)
        self.send("scheduler", RequestEnded(submit.request, "finished", len(tokens) * len(sequences)))


class Side:
    """The receiver of one service's stream."""

    def __init__(self, backstage: Backstage, service: str) -> None:
        self._backstage = backstage
        self._service = service

    def opened(self, stream: Stream) -> None:
        self._backstage.streams[self._service] = stream
        if self._service == "scheduler":
            stream.send(self._backstage.capacity)
        else:
            stream.send(PolicyNow(1, POLICY))
        self._backstage.changed()

    def received(self, stream: Stream, message: AnyMessage) -> None:
        self._backstage.took(self._service, message)

    def closed(self, stream: Stream, reason: str) -> None:
        if self._backstage.streams.get(self._service) is stream:
            del self._backstage.streams[self._service]
        self._backstage.changed()

    def stalled(self, stream: Stream) -> None:
        raise AssertionError("the gateway does not read")

    def resumed(self, stream: Stream) -> None:
        raise AssertionError("the gateway did not read")


class Stage:
    """A gateway and what is behind it."""

    def __init__(self, gateway: GatewayService, backstage: Backstage, tokenizer: Tokenizer, folder: Path) -> None:
        self.gateway = gateway
        self.backstage = backstage
        self.tokenizer = tokenizer
        self.template = ChatTemplate.load(folder / "demo")
        self.folder = folder
        self.url = f"http://127.0.0.1:{gateway.port}"
        self.clients: list[openai.AsyncOpenAI] = []

    def client(self, key: str = KEY) -> openai.AsyncOpenAI:
        self.clients.append(openai.AsyncOpenAI(api_key=key, base_url=f"{self.url}/v1", max_retries=0, timeout=WAIT_S))
        return self.clients[-1]

    async def post(self, path: str, body: dict[str, Any] | bytes, **headers: str) -> tuple[int, Any, Any]:
        """Status, JSON document and headers of an answer."""
        data = io.BytesIO(body if isinstance(body, bytes) else msgspec.json.encode(body))
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.url + path, data=data, headers={"authorization": f"Bearer {KEY}", **headers}) as answer,
        ):
            return answer.status, await answer.json(), answer.headers

    async def get(self, path: str, key: str = KEY) -> tuple[int, Any, Any]:
        async with (
            aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"} if key else {}) as session,
            session.get(self.url + path) as answer,
        ):
            return answer.status, await answer.json(), answer.headers

    async def stream(self, path: str, body: dict[str, Any]) -> list[tuple[str, Any]]:
        """Names and documents of the events of a stream."""
        async with (
            aiohttp.ClientSession(headers={"authorization": f"Bearer {KEY}"}) as session,
            session.post(self.url + path, json=body) as answer,
        ):
            events = [each.split("\n") for each in (await answer.text()).split("\n\n") if each]
        return [
            (name.removeprefix("event: "), msgspec.json.decode(data.removeprefix("data: "))) for name, data in events
        ]

    def chat(self, **more: Any) -> dict[str, Any]:
        return {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], **more}

    def says(self, text: str, finish: FinishReason = FinishReason.LENGTH) -> list[int]:
        """From now on every request is answered with this text; returns its tokens (plus the end token)."""
        tokens = self.tokenizer.encode(text, add_special_tokens=False)
        if finish == FinishReason.STOP:
            tokens = [*tokens, min(self.tokenizer.eos_ids)]

        def script(submit: Submit) -> None:
            self.backstage.admit(submit)
            self.backstage.speak(submit, tokens, finish)

        self.backstage.script = script
        return tokens

    def connect(self, receive_buffer: int = 0) -> socket.socket:
        """A bare connection, for clients that misbehave."""
        bare = socket.socket()
        if receive_buffer:
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        bare.connect(("127.0.0.1", self.gateway.port))
        bare.setblocking(False)
        return bare

    def raw_request(self, body: dict[str, Any], version: str = "1.1") -> bytes:
        data = msgspec.json.encode(body)
        head = (
            f"POST /v1/chat/completions HTTP/{version}\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
            f"content-length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data


@pytest.fixture
def admin_key() -> str:
    """Opens the console and no model."""
    return ADMIN_KEY


@pytest.fixture
def states() -> tuple[LimitState, ...]:
    """What is left of a caller's limits."""
    return (
        LimitState("key", "one", "requests", 60, 60, 58, 2.0),
        LimitState("tenant", "acme", "total_tokens", 60_000, 60, 58_210, 1.79),
    )


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("model") / "demo")


@pytest.fixture
async def stage(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stage]:
    """As its parameter, a `Setup`, says."""
    monkeypatch.setattr(gateway_service, "Rendering", RenderedHere)
    (tmp_path / "demo").symlink_to(checkpoint)
    (tmp_path / "tenants.yaml").write_text(TENANTS)
    (tmp_path / "streams.secret").write_bytes(SECRET)
    setup = getattr(request, "param", Setup())
    http = HttpSettings(**{"port": 0, "stream_buffer_bytes": 64 * 2**10, "body_s": 1.0, "drain_s": 0.2, **setup.http})
    backstage = Backstage(setup.ahead_ns)
    addresses = {service: await backstage.listen(service, tmp_path / "run") for service in ("admission", "scheduler")}
    deployment = Deployment(
        model=str(tmp_path / "demo"),
        streams=StreamSettings(**addresses),
        data=str(tmp_path),
        run=str(tmp_path / "run"),
        http=http,
        telemetry=TelemetrySettings(tokens=setup.tracing),
    ).resolved()
    gateway = GatewayService(deployment)
    await gateway.start()
    stage = Stage(gateway, backstage, Tokenizer.load(checkpoint), tmp_path)
    async with asyncio.timeout(WAIT_S):
        while gateway.not_ready():  # noqa: ASYNC110  services poll their readiness, they do not signal it
            await asyncio.sleep(0)
    yield stage
    for client in stage.clients:
        await client.close()
    await gateway.stop()
    await backstage.close()
