"""One HTTP connection: aiohttp's, but what it answers by itself is JSON in OpenAI's shape too.

Owns what happens before a request has a handler: bytes that are no HTTP get a sentence, and one line in the log instead
of a traceback, which any stranger could fill it with.
"""

import logging
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from services.errors import RequestError

log = logging.getLogger(__name__)


class Connection(web.RequestHandler):
    """aiohttp calls these two; everything else is its own."""

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
            error = RequestError("invalid_http", f"this is not HTTP that can be read: {_one_line(message or exc)}")
            log.info("%s: %s", request.remote, error.message)
        else:
            error = RequestError("internal_error", "the gateway failed on this request; its log says why")
            log.error("a request failed before it was handled", exc_info=exc)
        response = web.Response(
            status=error.status, body=error.body, content_type="application/json", headers=error.headers
        )
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """What aiohttp has to complain of: in a line where the client is at fault."""
        cause = kw.get("exc_info")
        if isinstance(cause, HttpProcessingError | web.RequestPayloadError):
            log.info("a client's body could not be read: %s", _one_line(cause))
        else:
            log.error(*args, **kw)


def _one_line(what: object) -> str:
    return " ".join(str(what).split())
