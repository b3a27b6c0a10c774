"""How much one JSON document may hold."""

import json

import pytest

from services.errors import RequestError
from services.gateway.json_bounds import MAX_DEPTH, MAX_PARTS, check_parts


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        json.dumps({"code": "[{:" * MAX_PARTS, "escaped": '"[\\' * 1000}).encode(),
        b'["unterminated ' + b"[" * 10_000,
        b"[" + b'"[",' * 1000 + b"1]",
    ],
)
def test_text_may_hold_as_many_brackets_as_it_likes(data: bytes) -> None:
    if data.startswith(b'["unterminated'):
        with pytest.raises(RequestError, match="nested"):
            check_parts(data, "the body")
    else:
        check_parts(data, "the body")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "the body is nested 129 deep; at most 128 is allowed"),
        (b'[{"a":' * 65 + b"1" + b"}]" * 65, "nested 130 deep"),
        (b"[" + b"[]," * MAX_PARTS + b"[]]", "has 50002 lists, objects and members of objects; at most 50000"),
        (b"{" + b'"a":1,' * MAX_PARTS + b'"b":1}', "has 50002 lists, objects and members"),
    ],
)
def test_a_document_that_is_too_much_is_refused_with_how_much_it_is(data: bytes, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        check_parts(data, "the body")
