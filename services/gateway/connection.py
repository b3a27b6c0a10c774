"""One HTTP connection: aiohttp's, but with an end to every wait for its client, and JSON in what it answers by itself.

Owns what happens before a request has a handler, and how long a client may take over what it sends and what it is sent.
Bytes that are no HTTP get a sentence, and one line in the log instead of a traceback, which any stranger could fill it
with. What they were is in neither: they may hold a key.
"""

import asyncio
import logging
import re
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import (
    BadStatusLine,
    ContentEncodingError,
    HttpProcessingError,
    InvalidHeader,
    InvalidURLError,
    LineTooLong,
)

from services.errors import RequestError
from services.gateway.replies import JSON, SERVER, dialect_of, head_too_large
from services.settings import HttpSettings

LINGER_S = 2.0
"""How long a body is still read whose request is answered already, so that its client comes to read the answer."""
MAX_HEADERS = 100
NEVER_S = 10 * 365 * 86400.0
"""aiohttp's own limit to idleness, which would cut a request short without a word."""
TOO_MANY_HEADERS = "Too many headers received"
"""aiohttp's sentence: it has no exception for it."""

QUOTED = re.compile(r"(?:\d+, message:\s+)?(?P<kind>[^\n]*?)(?:: b?['\"]|\n|$)")
"""Its kind of error, then what it quotes."""

log = logging.getLogger(__name__)


class Connection(web.RequestHandler):
    """What is overridden here aiohttp calls; `look` is called by `watch`."""

    __slots__ = ("_http", "_num_requests", "_since", "_unread_bytes", "_unread_since", "_wanting_bytes", "_wire")

    def __init__(self, server: web.Server, http: HttpSettings, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # aiohttp's way to keep none
            keepalive_timeout=NEVER_S,
            lingering_time=LINGER_S,
            max_line_size=http.max_url_bytes,
            max_field_size=http.max_head_bytes,
            max_headers=MAX_HEADERS,
        )
        self._http = http
        self._wire: asyncio.Transport | None = None
        """The transport, until it is closed indeed: aiohttp forgets it when it begins to close it."""
        self._since = loop.time()
        """When the present wait for a request began; of one that has begun to arrive, when its first byte came."""
        self._wanting_bytes = 0
        """What has arrived of a request's head that is not complete."""
        self._num_requests = 0
        """Whose heads were complete when it was looked at last."""
        self._unread_bytes = 0
        """What the client had not read when it was looked at last; 0 while more is being written."""
        self._unread_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio has it."""
        super().connection_made(transport)
        self._wire = self.transport

    def connection_lost(self, exc: BaseException | None) -> None:
        """As asyncio has it."""
        self._wire = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """As asyncio has it; a head that grows too large is refused before it is complete."""
        waited = self._is_waiting
        super().data_received(data)
        if not waited or not data or not self._is_waiting:
            self._wanting_bytes = 0
            return
        if not self._wanting_bytes:
            self._since = self._loop.time()
        self._wanting_bytes += len(data)
        if self._wanting_bytes > self._http.max_head_bytes:
            self._refuse(head_too_large(self._http.max_head_bytes))

    def close(self) -> None:
        """As aiohttp has it: no further request. It would leave a connection that waits for one open for ever, and
        never answer a client of whose request a part has come: that one is told to close by its answer.
        """
        waited = self._is_waiting
        if waited and self._wanting_bytes:
            return
        super().close()
        if waited and self._wire is not None:
            self._wire.close()

    def look(self, now: float) -> None:
        """End a wait that has become too long. `now`: the loop's time."""
        wire = self._wire
        if wire is None:
            return
        if self._is_unread(wire.get_write_buffer_size(), now):
            # What was not read by now will not be: an error could only wait behind it.
            wire.abort()
            return
        if not self._is_waiting or self.transport is None:
            self._since = now
            return
        if self._num_requests != self._request_count:  # it was answered since, and waits for a further one
            self._num_requests = self._request_count
            self._since = now
        waited_s = now - self._since
        if self._wanting_bytes:
            limit_s = self._http.header_s
            if waited_s > limit_s:
                message = f"the head of the request took longer than {limit_s:g} s"
                self._refuse(RequestError("headers_too_slow", message))
        elif waited_s > (self._http.idle_s if self._request_count else self._http.header_s):
            self.force_close()

    @property
    def _is_waiting(self) -> bool:
        """For the head of a request: nothing else is going on."""
        return self._waiter is not None and not self._waiter.done()

    def _is_unread(self, num_bytes: int, now: float) -> bool:
        """Whether the client has read nothing for too long of what was written for it.

        While more is being written its amount says nothing, and what a client may leave unread then has its own limit.
        """
        if not num_bytes or not (self._paused or self._is_waiting or self.transport is None):
            self._unread_bytes = 0
            return False
        if not 0 < self._unread_bytes <= num_bytes:
            self._unread_since = now
        self._unread_bytes = num_bytes
        return now - self._unread_since > self._http.unread_s

    def _refuse(self, error: RequestError) -> None:
        """Answer a request that will not arrive, and close the connection."""
        log.info("%s: %s", self.peername, error.message)
        if self.transport is not None:
            self.transport.write(last_words(error))
        self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what cannot be read as a request; the connection is closed after it."""
        if request.writer.output_size > 0:
            raise ConnectionResetError("an answer had begun when the request turned out to be malformed")
        if status < 500:
            error = self._unreadable(exc or message)
            log.info("%s: %s", request.remote, error.message)
        else:
            error = RequestError("internal_error", "the gateway failed on this request; its log says why")
            log.error("a request failed before it was handled", exc_info=exc)
        headers = error.headers | {"server": SERVER}
        response = web.Response(status=error.status, body=error.body, content_type=JSON, headers=headers)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """What aiohttp answers before a handler is asked, as JSON too: it knows one expectation."""
        if isinstance(resp, web.HTTPExpectationFailed):
            message = "this expectation is not known here; of Expect, 100-continue is"
            error, dialect = RequestError("unknown_expectation", message), dialect_of(request)
            resp = web.Response(status=dialect.status(error), body=dialect.body(error), content_type=JSON)
            resp.headers["server"] = SERVER
        return await super().finish_response(request, resp, start_time)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """What aiohttp has to complain of: in a line where the client is at fault."""
        cause = kw.get("exc_info")
        if isinstance(cause, HttpProcessingError | web.RequestPayloadError):
            log.info("a client's body could not be read: %s", kind_of(cause))
        else:
            log.error(*args, **kw)

    def _unreadable(self, cause: BaseException | str | None) -> RequestError:
        if isinstance(cause, LineTooLong):
            if self._http.max_url_bytes in cause.args:
                limit = self._http.max_url_bytes
                return RequestError("url_too_long", f"the URL is longer than {limit} bytes, the limit here")
            return head_too_large(self._http.max_head_bytes)
        if str(getattr(cause, "message", "")) == TOO_MANY_HEADERS:
            return RequestError("headers_too_large", f"there are more than {MAX_HEADERS} headers, the limit here")
        return RequestError("invalid_http", f"this is not HTTP that can be read: {kind_of(cause)}")


async def watch(server: web.Server, period_s: float) -> None:
    """Look at every connection of a server once in so many seconds, for ever."""
    now_s = asyncio.get_running_loop().time
    while True:
        await asyncio.sleep(period_s)
        now = now_s()
        for connection in server.connections:
            if isinstance(connection, Connection):
                connection.look(now)


def last_words(error: RequestError) -> bytes:
    """An answer to what was no request, before its connection is closed."""
    lines = [f"HTTP/1.1 {error.status} {error.code}", f"server: {SERVER}", f"content-type: {JSON}"]
    lines += [f"{name}: {value}" for name, value in error.headers.items()]
    lines += ["connection: close", f"content-length: {len(error.body)}"]
    return "\r\n".join([*lines, "\r\n"]).encode() + error.body


def kind_of(cause: BaseException | str | None) -> str:
    """What is wrong with bytes, without the bytes, which aiohttp quotes."""
    match cause:
        case InvalidURLError():
            return "its URL is malformed"
        case BadStatusLine():
            return "its first line is malformed"
        case InvalidHeader():
            return "a header is malformed"
        case ContentEncodingError():  # which names the library that it would take
            return (
                "its body is not in its content-encoding, or in one that is not known here; of these are gzip, deflate"
            )
    said = QUOTED.match(str(getattr(cause, "message", "") or cause or ""))
    return " ".join(said["kind"].split()).rstrip(":.") if said and said["kind"] else "it is malformed"
