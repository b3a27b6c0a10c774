"""Answers of the gateway's own: their headers, and errors as JSON whatever went wrong.

Knows status codes and the policy's label; knows no request's parameters and no stream.
"""

import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from services.errors import RequestError
from services.gateway.policy import Revisions

JSON = "application/json"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)


class Replies:
    """What every answer says beside its body."""

    def __init__(self, revisions: Revisions) -> None:
        self._revisions = revisions

    def headers(self, answer_id: str = "") -> dict[str, str]:
        """Of any answer."""
        headers = {"x-request-id": answer_id or new_id("req")}
        if self._revisions.label:
            headers["x-fairlead-policy"] = self._revisions.label
        return headers

    def json(self, document: Any, status: int = 200) -> web.Response:
        """A document."""
        body = msgspec.json.encode(document)
        return web.Response(status=status, body=body, content_type=JSON, headers=self.headers())

    def refusal(self, error: RequestError) -> web.Response:
        """An error."""
        return web.Response(
            status=error.status, body=error.body, content_type=JSON, headers=self.headers() | error.headers
        )

    @web.middleware
    async def errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Make every error JSON, in the shape of the endpoint."""
        try:
            return await handler(request)
        except RequestError as error:
            return self.refusal(error)
        except web.HTTPNotFound:
            return self.refusal(RequestError("not_found", f"there is no {request.method} {request.path} here"))
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods))
            message = f"{request.path} does not take {request.method}; it takes {allowed}"
            response = self.refusal(RequestError("method_not_allowed", message))
            response.headers["allow"] = allowed
            return response
        except web.HTTPException as error:
            return self.refusal(RequestError("invalid_value", f"{error.reason}"))
        except ConnectionError:
            raise
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            return self.refusal(RequestError("internal_error", "the gateway failed on this request; its log says why"))


def new_id(prefix: str) -> str:
    """An id that nobody has had."""
    return f"{prefix}-{secrets.token_hex(12)}"
