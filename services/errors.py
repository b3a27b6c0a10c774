"""What a client is told when it gets no answer: one table from code to HTTP status, in OpenAI's body shape.

Knows codes and their HTTP form; the sentences come from whoever refuses.
"""

import math
from typing import NamedTuple

import msgspec


class Form(NamedTuple):
    """How a code looks over HTTP; `retry_after_s` is said unless the refusal brings its own."""

    status: int
    type: str
    retry_after_s: float | None = None


INVALID = "invalid_request_error"
SERVER = "server_error"

FORMS: dict[str, Form] = {
    # The request is wrong: sending it again changes nothing.
    "invalid_http": Form(400, INVALID),
    "invalid_json": Form(400, INVALID),
    "invalid_type": Form(400, INVALID),
    "invalid_value": Form(400, INVALID),
    "missing_parameter": Form(400, INVALID),
    "unknown_parameter": Form(400, INVALID),
    "unsupported_parameter": Form(400, INVALID),
    "context_length_exceeded": Form(400, INVALID),
    "request_exceeds_limit": Form(400, INVALID),
    "invalid_api_key": Form(401, INVALID),
    "class_not_allowed": Form(403, "permission_error"),
    "model_not_found": Form(404, INVALID),
    "not_found": Form(404, INVALID),
    "method_not_allowed": Form(405, INVALID),
    "body_too_slow": Form(408, INVALID),
    "body_too_large": Form(413, INVALID),
    # The caller has had its share.
    "rate_limit_exceeded": Form(429, "tokens"),
    "insufficient_quota": Form(429, "insufficient_quota"),
    "queue_full": Form(429, "requests", 1.0),
    # The caller is gone or does not read: for logs, traces and the end of a stream.
    "client_gone": Form(499, "client_error"),
    "slow_reader": Form(499, "client_error"),
    # We cannot serve it now.
    "internal_error": Form(500, SERVER),
    "engine_error": Form(500, SERVER),
    "output_failed": Form(500, SERVER),
    "scheduler_lost": Form(502, SERVER, 1.0),
    "cancelled": Form(503, SERVER, 1.0),
    "draining": Form(503, SERVER, 1.0),
    "no_capacity": Form(503, SERVER, 1.0),
    "queue_timeout": Form(503, SERVER, 1.0),
    "admission_lost": Form(503, SERVER, 1.0),
}
UNKNOWN = Form(503, SERVER, 1.0)
"""A code that a newer neighbour uses and this version does not know."""

NO_RETRY = ("insufficient_quota",)
"""Waiting does not help, and OpenAI's clients would retry a 429."""


class RequestError(Exception):
    """Why a request gets no answer, or not the rest of it.

    `param` is the request's parameter at fault. `retry_after_s` is when the same request may pass.
    """

    def __init__(
        self, code: str, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        form = FORMS.get(code, UNKNOWN)
        self.code = code
        self.message = message
        self.param = param
        self.status = form.status
        self.type = form.type
        self.retry_after_s = form.retry_after_s if retry_after_s is None else retry_after_s

    @property
    def body(self) -> bytes:
        """OpenAI's error document."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    @property
    def headers(self) -> dict[str, str]:
        """`retry-after` in whole seconds, rounded up: a client that waits that long has waited enough."""
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.code in NO_RETRY:
            headers["x-should-retry"] = "false"
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers
