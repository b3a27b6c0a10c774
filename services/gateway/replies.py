"""Answers of the gateway's own: their headers, and errors as JSON whatever went wrong.

Knows status codes, dialects and the policy's label; knows no request's parameters and no stream.
"""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import HttpVersion10, HttpVersion11, web

from services.errors import RequestError
from services.gateway.dialects import ANTHROPIC, OPENAI, Dialect
from services.gateway.limit_headers import queue_place
from services.gateway.policy import Revisions
from services.gateway.told import Told

JSON = "application/json"
SERVER = "fairlead"
"""Instead of the names and versions of what it is made with."""
MESSAGES = "/v1/messages"
"""This endpoint and those below it speak Anthropic's dialect, all others OpenAI's."""

UNREAD = ("body_too_slow", "body_too_large")
"""What is refused before its body was read: the connection cannot go on."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)


class Replies:
    """What every answer says beside its body."""

    def __init__(self, revisions: Revisions, max_head_bytes: int) -> None:
        self._revisions = revisions
        self._max_head_bytes = max_head_bytes

    def headers(self, request: web.BaseRequest, told: Told | None = None, answer_id: str = "") -> dict[str, str]:
        """Of any answer; `told` is what admission said of its request."""
        dialect = dialect_of(request)
        request_id = answer_id or new_id("req-")
        headers = {"server": SERVER, "x-request-id": request_id, dialect.id_header: request_id}
        if self._revisions.label:
            headers["x-fairlead-policy"] = self._revisions.label
        if told is None:
            return headers
        if told.slo_class:
            headers["x-fairlead-class"] = told.slo_class
        limits = dialect.limits(told.limits, told.limits_unix_s, time.time())
        return headers | limits | queue_place(told.position, told.wait_s)

    def json(self, request: web.BaseRequest, document: Any, status: int = 200) -> web.Response:
        """A document."""
        body = msgspec.json.encode(document)
        return web.Response(status=status, body=body, content_type=JSON, headers=self.headers(request))

    def refusal(
        self, request: web.BaseRequest, error: RequestError, told: Told | None = None, answer_id: str = ""
    ) -> web.Response:
        """An error; `answer_id`: what its request is known by to `fairlead explain`, if it came so far."""
        dialect = dialect_of(request)
        headers = self.headers(request, told, answer_id) | error.headers
        body = dialect.body(error)
        response = web.Response(status=dialect.status(error), body=body, content_type=JSON, headers=headers)
        if error.code in UNREAD:
            response.force_close()
        return response

    @web.middleware
    async def errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Make every error JSON, in the shape of the endpoint."""
        try:
            check_version(request)
            check_head(request, self._max_head_bytes)
            return await handler(request)
        except RequestError as error:
            return self.refusal(request, error)
        except web.HTTPNotFound:
            message = f"there is no {request.method} {request.path} here"
            return self.refusal(request, RequestError("not_found", message))
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods))
            message = f"{request.path} does not take {request.method}; it takes {allowed}"
            response = self.refusal(request, RequestError("method_not_allowed", message))
            response.headers["allow"] = allowed
            return response
        except web.HTTPException as error:
            return self.refusal(request, RequestError("invalid_value", f"{error.reason}"))
        except ConnectionError:
            raise
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            failure = RequestError("internal_error", "the gateway failed on this request; its log says why")
            return self.refusal(request, failure)


def dialect_of(request: web.BaseRequest) -> Dialect:
    """Whose form this endpoint speaks."""
    return ANTHROPIC if request.path == MESSAGES or request.path.startswith(f"{MESSAGES}/") else OPENAI


def check_version(request: web.BaseRequest) -> None:
    """Whether a request is in a version of HTTP that answers can be given in.

    Raises:
        RequestError: it is not; its answer is in HTTP/1.1.
    """
    given = request._version  # noqa: SLF001  `version` is remembered once asked for, and the answer's line would have it
    if given not in (HttpVersion10, HttpVersion11):
        request._version = HttpVersion11  # noqa: SLF001
        raise RequestError(
            "http_version", f"HTTP/{given.major}.{given.minor} is not spoken here; HTTP/1.1 and HTTP/1.0 are"
        )


def check_head(request: web.BaseRequest, limit: int) -> None:
    """Whether line and headers of a request are within so many bytes together.

    Raises:
        RequestError: they are not.
    """
    size = len(request.path_qs) + sum(len(name) + len(value) for name, value in request.raw_headers)
    if size > limit:
        raise head_too_large(limit)


def head_too_large(limit: int) -> RequestError:
    """Of a request whose line and headers come to more than so many bytes."""
    message = f"the request's line and headers have more than {limit} bytes, the limit here"
    return RequestError("headers_too_large", message)


def new_id(prefix: str) -> str:
    """An id that nobody has had."""
    return prefix + secrets.token_hex(12)
