"""From a request that was handed on to its HTTP response: whole, or streamed as it is made.

Owns the response of an answer and the end of a request whose client is gone; knows no bodies.
"""

import asyncio
import logging
from collections.abc import Sequence

from aiohttp import web

from services.errors import RequestError
from services.gateway.backend import Backend
from services.gateway.replies import JSON, Replies
from services.gateway.streams import Answer, StreamedAnswer
from services.wire import Submit

log = logging.getLogger(__name__)


class Serving:
    """Responses over one backend."""

    def __init__(self, backend: Backend, replies: Replies, stream_buffer_bytes: int) -> None:
        self._backend = backend
        self._replies = replies
        self._stream_buffer_bytes = stream_buffer_bytes

    async def serve(
        self, request: web.Request, submits: Sequence[Submit], answer: Answer, stops: Sequence[str] = ()
    ) -> web.StreamResponse:
        """Hand the requests of an answer on and respond with what becomes of them.

        Raises:
            RequestError: there is no answer; nothing was written yet.
        """
        self._backend.submit(submits, answer, stops)
        try:
            if isinstance(answer, StreamedAnswer):
                return await self._stream(request, answer)
            return await self._collect(answer)
        finally:
            # After a whole answer nothing is left to cancel; otherwise the client is gone.
            self._backend.cancel(answer, RequestError("client_gone", "the client closed the connection"))

    async def _collect(self, answer: Answer) -> web.StreamResponse:
        while not answer.done:
            await answer.changed()
        if answer.failure is not None:
            raise answer.failure
        headers = self._replies.headers(answer.shape.answer_id)
        return web.Response(body=answer.document(), content_type=JSON, headers=headers)

    async def _stream(self, request: web.Request, answer: StreamedAnswer) -> web.StreamResponse:
        # The status line waits for the first text: until then a refusal can still say its own status.
        while not answer.begun:
            await answer.changed()
        if answer.failure is not None:
            raise answer.failure
        chunked = request.version >= (1, 1)
        response = web.StreamResponse(headers=self._replies.headers(answer.shape.answer_id))
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
        answer.attach(transport, request.protocol, chunked=chunked)
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
