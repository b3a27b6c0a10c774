"""Judges the bytes that a gateway answered with: each answer is a success or an error of our table, in its own form.

Knows nothing of what was sent but its method and dialect.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from engine.paced import NO_EMBEDDINGS, NO_GRAMMARS
from services.errors import FORMS

EXPECTED = (NO_EMBEDDINGS, NO_GRAMMARS, "is not spoken here")
"""What the synthetic engine cannot do, and a version of HTTP that nobody speaks."""
GOOD = (200, 204, 304)
OPENAI_FIELDS = {"message", "type", "param", "code"}
ENDINGS = (b"data: [DONE]\n\n", b'data: {"type":"message_stop"}\n\n')


class MalformedError(Exception):
    """This is no HTTP answer."""


class Reply(NamedTuple):
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes


def replies(data: bytes, *, to_head: bool) -> Iterator[Reply]:
    """The answers that came on one connection, in order. `to_head`: they have no bodies.

    Raises:
        MalformedError: what came is not whole.
    """
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ", 2)
        if not end or len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdecimal():
            raise MalformedError(f"no status line: {head[:100]!r}")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        status = int(words[1])
        if status == 100:
            continue
        if status in (204, 304) or (to_head and not data.startswith(b"{")):  # what cannot be read has no method
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body, data = _dechunked(data)
        else:
            size = int(headers.get("content-length", len(data)))
            body, data = data[:size], data[size:]
            if len(body) < size:
                raise MalformedError(f"{len(body)} of {size} bytes came")
        yield Reply(status, headers, body)


def problem(reply: Reply, *, to_head: bool) -> str:
    """What is wrong with an answer; empty: nothing."""
    if any(name.startswith("access-control") for name in reply.headers):
        return "an answer lets pages from elsewhere in"
    if reply.headers.get("server") != "fairlead":
        return f"the answer names its maker {reply.headers.get('server')!r}"
    if reply.status in GOOD:
        return _wrong_success(reply) if reply.body else ""
    if to_head:
        return "" if reply.status in {form.status for form in FORMS.values()} else f"status {reply.status}"
    try:
        document = json.loads(reply.body)
    except ValueError:
        return f"status {reply.status} is no JSON: {reply.body[:100]!r}"
    return _wrong_error(reply.status, document)


def _wrong_success(reply: Reply) -> str:
    kind = reply.headers.get("content-type", "").partition(";")[0]
    if kind == "application/json":
        json.loads(reply.body)
    elif kind == "text/event-stream":
        last = reply.body[reply.body.rfind(b"\n\n", 0, -2) + 2 :]
        if not reply.body.endswith(ENDINGS) and b'"error"' not in last and b"event: " not in last:
            return f"a stream ends with {reply.body[-100:]!r}"
    elif kind not in ("text/html", "text/javascript"):
        return f"a success of type {kind!r}"
    return ""


def _wrong_error(status: int, document: Any) -> str:
    match document:
        case {"type": "error", "error": {"type": str(kind), "message": str(message)}}:
            found = [form for form in FORMS.values() if (form.anthropic_status or form.status) == status]
            known = any(form.anthropic_type == kind for form in found)
        case {"error": {"message": str(message), "type": str(kind), "code": str(code)} as error}:
            known = error.keys() == OPENAI_FIELDS and code in FORMS and FORMS[code].status == status
        case _:
            return f"status {status} has another form: {str(document)[:200]}"
    if not known or not message or "\n" in message:
        return f"status {status} is none of the table's: {str(document)[:300]}"
    if status >= 500 and not any(each in message for each in EXPECTED):
        return f"status {status}: {message[:300]}"
    return ""


def _dechunked(data: bytes) -> tuple[bytes, bytes]:
    pieces = []
    while True:
        line, end, data = data.partition(b"\r\n")
        if not end:
            raise MalformedError(f"a chunked body ends without its end, after {len(b''.join(pieces))} bytes")
        size = int(line, 16)
        pieces.append(data[:size])
        data = data[size + 2 :]
        if size == 0:
            return b"".join(pieces), data
