"""To a collector: OTLP over HTTP or gRPC, from a bounded queue. A collector that is slow, absent or wrong costs
records, which are counted, and nothing else.

Knows encoded messages; not what is in them.
"""

import asyncio
import gzip
import logging
from collections import deque
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import aiohttp
from google.protobuf.message import DecodeError
from msgspec import Struct
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

TRACES, METRICS = "traces", "metrics"
MAX_QUEUED_BYTES = 32 * 2**20
TIMEOUT_S = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
TRIES = 5
MAX_ANSWER_BYTES = 2**16
RETRYABLE_HTTP = (408, 429, 502, 503, 504)
PROTOBUF = "application/x-protobuf"
log = logging.getLogger(__name__)


class RefusedError(Exception):
    """The collector did not take a message. `retry`: it may take it later."""

    def __init__(self, sentence: str, *, retry: bool) -> None:
        super().__init__(sentence)
        self.retry = retry


class Taken(NamedTuple):
    """What a collector said of a message that it took."""

    num_rejected: int = 0
    """Spans or points that it did not keep."""
    why: str = ""


class Transport(Protocol):
    """One way to a collector."""

    async def send(self, signal: str, body: bytes) -> Taken:
        """Hand over an encoded export request. Raises `RefusedError`."""

    async def close(self) -> None:
        """No more."""


class HttpTransport:
    """OTLP/HTTP with protobuf bodies, compressed."""

    def __init__(self, endpoint: str, headers: dict[str, str]) -> None:
        self._endpoint = endpoint.rstrip("/")
        fixed = {"content-type": PROTOBUF, "content-encoding": "gzip"}
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        self._session = aiohttp.ClientSession(headers={**headers, **fixed}, timeout=timeout)

    async def send(self, signal: str, body: bytes) -> Taken:
        """As `Transport.send`."""
        url = f"{self._endpoint}/v1/{signal}"
        try:
            async with self._session.post(url, data=gzip.compress(body, 1), allow_redirects=False) as answer:
                status, content_type = answer.status, answer.content_type
                said = await _read(answer.content)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RefusedError(f"{url}: {str(error) or type(error).__name__}", retry=True) from error
        if status // 100 != 2:
            raise RefusedError(f"{url} answered {status}", retry=status in RETRYABLE_HTTP)
        # Some answer with JSON or plain text whatever they were sent: they took it, and that is all they say.
        return taken(signal, said) if content_type == PROTOBUF else Taken()

    async def close(self) -> None:
        """As `Transport.close`."""
        await self._session.close()


async def _read(content: aiohttp.StreamReader) -> bytes:
    """An answer's body, as far as any that means something goes."""
    said = b""
    while len(said) <= MAX_ANSWER_BYTES and (more := await content.read(MAX_ANSWER_BYTES)):
        said += more
    return said


def taken(signal: str, said: bytes) -> Taken:
    """What an export response says: all of a message was kept, or how much of it was not.

    Raises:
        RefusedError: it is no export response.
    """
    try:
        if signal == TRACES:
            traces = ExportTraceServiceResponse.FromString(said).partial_success
            return Taken(traces.rejected_spans, traces.error_message)
        points = ExportMetricsServiceResponse.FromString(said).partial_success
        return Taken(points.rejected_data_points, points.error_message)
    except DecodeError as error:
        raise RefusedError("what it answered is no OTLP export response", retry=False) from error


def transport(endpoint: str, headers: dict[str, str]) -> Transport:
    """The way to a collector: `http://host:4318`, `https://…`, `grpc://host:4317` or `grpcs://…`.

    Raises:
        ValueError: the endpoint is none of these.
    """
    parts = urlsplit(endpoint)
    if parts.scheme in ("http", "https") and parts.netloc:
        return HttpTransport(endpoint, headers)
    if parts.scheme in ("grpc", "grpcs") and parts.netloc:
        # gRPC is large: only who sends by it loads it.
        from services.telemetry.sending_grpc import GrpcTransport  # noqa: PLC0415

        return GrpcTransport(parts.netloc, headers, encrypted=parts.scheme == "grpcs")
    raise ValueError(f"{endpoint!r} is no collector's address: http://host:4318 or grpc://host:4317")


class Message(Struct):
    """Something to send."""

    signal: str
    body: bytes
    num_items: int
    """Spans or points: what is lost if it is dropped."""


class Sender:
    """Sends one message after another. What does not fit the queue, and what nobody takes, is dropped and counted."""

    def __init__(self, transport: Transport, *, max_bytes: int = MAX_QUEUED_BYTES) -> None:
        self._transport = transport
        self._max_bytes = max_bytes
        self._queue: deque[Message] = deque()
        self._num_bytes = 0
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._said: dict[str, str] = {}
        """By signal, what is wrong: a collector may take traces and no metrics."""
        self._partly: set[str] = set()
        """Signals of which it was said that a part of a message was not kept."""
        self._sending: Message | None = None
        self.dropped: dict[str, int] = {TRACES: 0, METRICS: 0}
        self.sent: dict[str, int] = {TRACES: 0, METRICS: 0}

    def put(self, signal: str, body: bytes, num_items: int) -> None:
        """Queue a message; the oldest make room for it."""
        while self._queue and self._num_bytes + len(body) > self._max_bytes:
            self._drop(self._queue.popleft())
        self._queue.append(Message(signal, body, num_items))
        self._num_bytes += len(body)
        self._idle.clear()
        self._wanted.set()

    async def drain(self, limit_s: float) -> None:
        """Wait until everything is sent or given up, but not longer."""
        try:
            await asyncio.wait_for(self._idle.wait(), limit_s)
        except TimeoutError:
            for message in (*self._queue, *([self._sending] if self._sending else [])):
                self.dropped[message.signal] += message.num_items

    async def close(self) -> None:
        """Send no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._transport.close()

    async def _run(self) -> None:
        while True:
            if not self._queue:
                self._idle.set()
                self._wanted.clear()
                await self._wanted.wait()
            self._sending = message = self._queue.popleft()
            await self._send(message)
            self._sending = None

    async def _send(self, message: Message) -> None:
        pause_s = FIRST_PAUSE_S
        for left in reversed(range(TRIES)):
            try:
                said = await self._transport.send(message.signal, message.body)
            except RefusedError as refusal:
                self._say(message.signal, str(refusal))
                if not refusal.retry or not left:
                    break
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                self._num_bytes -= len(message.body)
                self._count(message, said)
                if self._said.pop(message.signal, ""):
                    log.info("the collector takes %s again", message.signal)
                return
        self._drop(message)

    def _count(self, message: Message, said: Taken) -> None:
        # What a collector says is not trusted beyond what it was sent.
        rejected = min(max(0, said.num_rejected), message.num_items)
        self.sent[message.signal] += message.num_items - rejected
        self.dropped[message.signal] += rejected
        if rejected and message.signal not in self._partly:
            self._partly.add(message.signal)
            log.warning(
                "the collector kept only a part of the %s (%d of %d not): %s; what it rejects is counted as dropped",
                message.signal,
                rejected,
                message.num_items,
                said.why or "it did not say why",
            )

    def _drop(self, message: Message) -> None:
        self._num_bytes -= len(message.body)
        self.dropped[message.signal] += message.num_items

    def _say(self, signal: str, sentence: str) -> None:
        """Once for each kind of trouble: a collector that is down for an hour is one line."""
        if sentence != self._said.get(signal):
            log.warning("the collector did not take %s: %s; serving is not affected", signal, sentence)
            self._said[signal] = sentence
