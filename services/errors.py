"""What a client is told when it gets no answer: one table from code to HTTP status and error type, in both dialects.

Knows codes and their HTTP form; the sentences come from whoever refuses. Anthropic's types are those of its public
documentation; its 529 says of the service what OpenAI's 503 says.
"""

from typing import NamedTuple

import msgspec


class Form(NamedTuple):
    """How a code looks over HTTP; `retry_after_s` is said unless the refusal brings its own."""

    status: int
    type: str
    retry_after_s: float | None = None
    anthropic_type: str = "invalid_request_error"
    anthropic_status: int | None = None
    """None: the same as OpenAI's."""


INVALID = "invalid_request_error"
SERVER = "server_error"
RATE = "rate_limit_error"
OURS = "api_error"
OVERLOADED = "overloaded_error"

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
    "invalid_api_key": Form(401, INVALID, None, "authentication_error"),
    "wrong_key_scope": Form(403, "permission_error", None, "permission_error"),
    "model_not_found": Form(404, INVALID, None, "not_found_error"),
    "not_found": Form(404, INVALID, None, "not_found_error"),
    "method_not_allowed": Form(405, INVALID),
    "headers_too_slow": Form(408, INVALID, None, "timeout_error"),
    "body_too_slow": Form(408, INVALID, None, "timeout_error"),
    "body_too_large": Form(413, INVALID, None, "request_too_large"),
    "url_too_long": Form(414, INVALID, None, "request_too_large"),
    "unknown_expectation": Form(417, INVALID),
    "headers_too_large": Form(431, INVALID, None, "request_too_large"),
    "http_version": Form(505, INVALID),
    # The caller has had its share.
    "rate_limit_exceeded": Form(429, "requests", None, RATE),
    "queue_full": Form(429, "requests", 1.0, RATE),
    # The caller is gone or does not read: for logs, traces and the end of a stream.
    "client_gone": Form(499, "client_error"),
    "slow_reader": Form(499, "client_error"),
    # We cannot serve it now.
    "internal_error": Form(500, SERVER, None, OURS),
    "output_failed": Form(500, SERVER, None, OURS),
    "scheduler_lost": Form(502, SERVER, 1.0, OURS),
    "cancelled": Form(503, SERVER, 1.0, OVERLOADED, 529),
    "draining": Form(503, SERVER, 1.0, OVERLOADED, 529),
    "no_capacity": Form(503, SERVER, 1.0, OVERLOADED, 529),
    "store_lost": Form(503, SERVER, 1.0, OVERLOADED, 529),
    "too_many_connections": Form(503, SERVER, 1.0, OVERLOADED, 529),
    "would_be_late": Form(503, SERVER, 1.0, OVERLOADED, 529),
    "queue_timeout": Form(503, SERVER, 1.0, OVERLOADED, 529),
    "admission_lost": Form(503, SERVER, 1.0, OVERLOADED, 529),
}
UNKNOWN = Form(503, SERVER, 1.0, OVERLOADED, 529)
"""A code that a newer neighbour uses and this version does not know."""

TYPES = {
    "prompt_tokens": "tokens",
    "output_tokens": "tokens",
    "total_tokens": "tokens",
    "concurrency": "concurrency",
}
"""Dimension of the limit that binds -> OpenAI's type of `rate_limit_exceeded`, where it is not `requests`."""

MOST_RETRY_S = 120.0
"""Beyond this wait a client is told not to try again by itself, as it would be by a limit of a day: OpenAI's waits no
longer (older ones come back within seconds), and Anthropic's sleeps for hours in the caller's place.
"""

MAX_CHARACTERS = 1000
"""Of a sentence."""
NS_PER_S, NS_PER_MS = 10**9, 10**6


class RequestError(Exception):
    """Why a request gets no answer, or not the rest of it.

    `param` is the request's parameter at fault, `dimension` that of the limit that binds. `retry_after_s` is when the
    same request may pass.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        dimension: str = "",
    ) -> None:
        super().__init__(message)
        message, param = _sentence(message), None if param is None else _sentence(param)
        form = FORMS.get(code, UNKNOWN)
        self.code = code
        self.message = message
        self.param = param
        self.status = form.status
        self.type = TYPES.get(dimension, form.type) if code == "rate_limit_exceeded" else form.type
        self.anthropic_status = form.anthropic_status or form.status
        self.anthropic_type = form.anthropic_type
        self.retry_after_s = form.retry_after_s if retry_after_s is None else retry_after_s

    @property
    def body(self) -> bytes:
        """OpenAI's error document."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    @property
    def anthropic_body(self) -> bytes:
        """Anthropic's error document."""
        return msgspec.json.encode({"type": "error", "error": {"type": self.anthropic_type, "message": self.message}})

    @property
    def headers(self) -> dict[str, str]:
        """`retry-after` in whole seconds and `retry-after-ms`, rounded up: who waits that long has waited enough.
        `x-should-retry: false`, which the official clients obey, where they should not wait.
        """
        headers = {}
        if self.retry_after_s is not None:
            wait_ns = max(1, round(self.retry_after_s * NS_PER_S))
            headers["retry-after"] = str(-(-wait_ns // NS_PER_S))
            headers["retry-after-ms"] = str(-(-wait_ns // NS_PER_MS))
            if self.retry_after_s > MOST_RETRY_S:
                headers["x-should-retry"] = "false"
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers


def _sentence(text: str) -> str:
    """One line of bounded length that can be written as UTF-8: a sentence may quote what a client sent."""
    line = " ".join(text.split()) if "\n" in text or "\r" in text else text
    if len(line) > MAX_CHARACTERS:
        line = f"{line[: MAX_CHARACTERS - 3]}..."
    return line if line.isascii() else line.encode(errors="replace").decode()
