"""From a request that was handed on to its HTTP response: whole, or streamed as it is made.

Owns the response of an answer and the end of a request whose client is gone; knows no bodies.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from aiohttp import web

from services.errors import RequestError
from services.gateway.backend import Backend
from services.gateway.intake import Caller
from services.gateway.replies import JSON, Handler, Replies
from services.gateway.streams import Answer, StreamedAnswer
from services.gateway.tracing import Origin
from services.settings import HttpSettings
from services.wire import Submit

HEARD_S = 0.2
"""How long an answer waits for admission's word when tokens have overtaken it: the two come by different streams."""

OPERATIONS = {"/v1/completions": "text_completion", "/v1/embeddings": "embeddings"}
"""`gen_ai.operation.name` of an endpoint; of all others `chat`."""


class Prepared(NamedTuple):
    """All that serving needs of a body: what was read of it is gone by then, which for a long prompt is many times as
    large, and requests may wait for long.
    """

    submits: Sequence[Submit]
    answer: Answer
    stops: Sequence[str] = ()


Prepare = Callable[[web.Request, Caller], Awaitable[Prepared]]

log = logging.getLogger(__name__)


class Serving:
    """Responses over one backend."""

    def __init__(self, backend: Backend, replies: Replies, http: HttpSettings) -> None:
        self._backend = backend
        self._replies = replies
        self._stream_buffer_bytes = http.stream_buffer_bytes
        self._max_per_key = http.max_requests_per_key
        self._num_under_way: Counter[str] = Counter()
        """Requests by the id of their key; only of keys that have some."""

    def counted(self, caller_of: Callable[[web.Request], Caller], prepare: Prepare) -> Handler:
        """A handler that serves callers who have a key, and has their wrong requests counted as requests."""

        async def handle(request: web.Request) -> web.StreamResponse:
            caller = caller_of(request)
            with self.under_way(caller[1].id):
                try:
                    return await self._serve(request, await prepare(request, caller))
                except RequestError as error:
                    if error.status >= 500:  # not the caller's fault
                        raise
                    told, refusal = await self._backend.count_invalid(*caller)
                    return self._replies.refusal(request, refusal or error, told)

        return handle

    @contextmanager
    def under_way(self, key: str) -> Iterator[None]:
        """Count a request of a key until it is answered; a thousand bodies of one key could fill the memory."""
        if self._num_under_way[key] >= self._max_per_key:
            message = (
                f"key {key} has {self._max_per_key} requests under way here, which is the most it may have; "
                "wait for one to end"
            )
            raise RequestError("rate_limit_exceeded", message, retry_after_s=1.0, dimension="concurrency")
        self._num_under_way[key] += 1
        try:
            yield
        finally:
            self._num_under_way[key] -= 1
            if not self._num_under_way[key]:
                del self._num_under_way[key]

    async def _serve(self, request: web.Request, prepared: Prepared) -> web.StreamResponse:
        """Hand the requests of an answer on and respond with what becomes of them."""
        submits, answer, stops = prepared
        origin = Origin(request.headers.get("traceparent", ""), OPERATIONS.get(request.path, "chat"))
        self._backend.submit(submits, answer, stops, origin)
        try:
            # The status line waits for the first text: until then a refusal can still say its own status.
            while not (answer.done or answer.begun):
                await answer.changed()
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARD_S):
                    while answer.unheard:
                        await answer.changed()
            if answer.failure is not None:
                return self._replies.refusal(request, answer.failure, answer.told, answer.shape.answer_id)
            headers = self._replies.headers(request, answer.told, answer.shape.answer_id)
            if isinstance(answer, StreamedAnswer):
                return await self._stream(request, answer, headers)
            response = web.Response(body=answer.document(), content_type=JSON, headers=headers)
            await response.prepare(request)
            await response.write_eof()
            self._backend.tracing.written(answer)
            return response
        finally:
            # After a whole answer nothing is left to cancel; otherwise the client is gone.
            self._backend.cancel(answer, RequestError("client_gone", "the client closed the connection"))
            self._backend.tracing.end(answer)

    async def _stream(
        self, request: web.Request, answer: StreamedAnswer, headers: dict[str, str]
    ) -> web.StreamResponse:
        chunked = request.version >= (1, 1)
        response = web.StreamResponse(headers=headers)
        response.content_type = "text/event-stream"
        response.headers["cache-control"] = "no-cache"
        response.headers["x-accel-buffering"] = "no"
        if chunked:
            response.enable_chunked_encoding()
        else:
            response.force_close()
        writer = await response.prepare(request)
        transport = request.transport
        if writer is None or transport is None:
            raise ConnectionResetError("the client is gone")
        answer.on_slow = lambda: self._too_slow(answer, transport)
        answer.attach(transport, request.protocol, limit_bytes=self._stream_buffer_bytes, chunked=chunked)
        while not answer.ended:
            if answer.holding:
                await writer.drain()
                answer.flush()
            else:
                await answer.changed()
        await response.write_eof()
        return response

    def _too_slow(self, answer: StreamedAnswer, transport: asyncio.Transport) -> None:
        message = f"more than {self._stream_buffer_bytes} bytes of the answer were not read"
        log.info("%s: cancelled: %s", answer.shape.answer_id, message)
        # What was not read by now will not be: the error could only wait behind it.
        transport.abort()
        self._backend.cancel(answer, RequestError("slow_reader", message))
