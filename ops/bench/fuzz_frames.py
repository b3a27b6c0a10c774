"""Frames that no honest neighbour sends: messages of every kind, made up from their types, then damaged.

Owns what is interesting to a parser and to whoever believes it: edges of integers, numbers that are none, arrays that
do not fit one another, ids of what is really there. Knows no service.
"""

import random
import struct
from typing import Any, get_args

import msgspec
from msgspec import inspect

from services.framing import HEADER
from services.wire import AnyMessage, encoder

INTEGERS = (0, 1, -1, 2, 7, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, -(2**31), -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, float("nan"), float("inf"), float("-inf"), 1e308, 5e-324, 1e9)
STRINGS = (
    "",
    "acme",
    "paid",
    "free",
    "default",
    "x" * 300,
    "\x00",
    "é\u2028",
    "../..",
    "finished",
    "cancelled",
    "error",
)
TREES = (None, True, -1, 2**64 - 1, float("nan"), "", "x" * 70, b"", b"\xff" * 9, [], [[]], {}, {"t": "step"}, [1] * 40)
KINDS: list[type[Any]] = list(get_args(AnyMessage))
SHAPES = dict(zip(KINDS, inspect.multi_type_info(KINDS), strict=True))


class Pool:
    """What a place has that messages can be about: they reach deep only where some of their ids are real."""

    def __init__(self) -> None:
        self.requests: list[int] = []
        self.steps: list[int] = [0]
        self.documents: list[bytes] = [b"version: 1"]

    def integer(self, rng: random.Random) -> int:
        """An id or a count."""
        roll = rng.random()
        if self.requests and roll < 0.5:
            return rng.choice(self.requests) + rng.choice((0, 0, 0, 1, 2))
        if roll < 0.6:
            return rng.choice(self.steps) + rng.choice((0, 0, 1))
        return rng.choice(INTEGERS) if roll < 0.75 else rng.randrange(40)

    def array(self, rng: random.Random) -> bytes:
        """Some numbers as bytes."""
        code = rng.choice("qqiib?f")
        count = rng.choice((0, 1, 1, 2, 3, 8))
        if code == "f":
            values: list[Any] = [rng.choice(FLOATS) % 1e30 if rng.random() < 0.9 else 0.0 for _ in range(count)]
        elif code == "?":
            values = [rng.random() < 0.5 for _ in range(count)]
        else:
            bits = struct.calcsize("<" + code) * 8
            values = [_wrapped(self.integer(rng), bits) for _ in range(count)]
        return struct.pack(f"<{count}{code}", *values)


def message(rng: random.Random, pool: Pool, kind: type[Any]) -> Any:
    """A message of a kind as its types allow it."""
    return _value(SHAPES[kind], rng, pool)


def _value(kind: inspect.Type, rng: random.Random, pool: Pool) -> Any:
    match kind:
        case inspect.StructType():
            made = {}
            for field in kind.fields:
                if field.required or rng.random() < 0.4:
                    made[field.name] = _value(field.type, rng, pool)
            # Built without its own checks: whoever reads it must make them.
            return _Raw(kind, made)
        case inspect.IntType():
            return pool.integer(rng)
        case inspect.FloatType():
            return rng.choice(FLOATS) if rng.random() < 0.3 else rng.random() * 10
        case inspect.BoolType():
            return rng.random() < 0.5
        case inspect.StrType():
            return rng.choice(STRINGS)
        case inspect.BytesType():
            return rng.choice(pool.documents) if rng.random() < 0.1 else pool.array(rng)
        case inspect.ListType() | inspect.VarTupleType() | inspect.CollectionType():
            return [_value(kind.item_type, rng, pool) for _ in range(rng.choice((0, 1, 1, 2, 5)))]
        case inspect.TupleType():
            return [_value(item, rng, pool) for item in kind.item_types]
        case inspect.DictType():
            pairs = range(rng.choice((0, 0, 1, 3)))
            made_up = [(_value(kind.key_type, rng, pool), _value(kind.value_type, rng, pool)) for _ in pairs]
            return dict(made_up)
        case inspect.UnionType():
            return _value(rng.choice(kind.types), rng, pool)
        case inspect.LiteralType():
            return rng.choice(kind.values)
        case _:
            return None


class _Raw(dict[str, Any]):
    """A struct's fields, with the tag it is known by."""

    def __init__(self, kind: inspect.StructType, fields: dict[str, Any]) -> None:
        tag = {} if kind.tag_field is None else {kind.tag_field: kind.tag}
        super().__init__({**tag, **fields})


def encoded(made: Any) -> bytes:
    """The body of a frame."""
    try:
        return encoder.encode(made)
    except (OverflowError, msgspec.MsgspecError):
        return encoder.encode({"t": "cancel", "request": 0})


def damaged(rng: random.Random, body: bytes) -> bytes:
    """The body with one damage or several, to its bytes or to what they say."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        body = rng.choice((_field, _field, _field, _bytes, _bytes, _cut, _nested, _counts))(rng, body)
    return body


def framed(rng: random.Random, body: bytes) -> bytes:
    """A frame around it, seldom with a wrong length."""
    length = len(body)
    if rng.random() < 0.03:
        length = rng.choice((0, 1, max(0, length - 1), length + 1, length + 1000, 2**20, 2**31, 2**32 - 1))
    return HEADER.pack(length) + body


def _field(rng: random.Random, body: bytes) -> bytes:
    try:
        tree = msgspec.msgpack.decode(body)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        return _bytes(rng, body)
    places: list[tuple[Any, Any]] = []
    _walk(tree, places)
    if not places:
        return _bytes(rng, body)
    holder, key = rng.choice(places)
    roll = rng.random()
    if roll < 0.15 and isinstance(holder, dict):
        del holder[key]
    elif roll < 0.55:
        old = holder[key]
        holder[key] = _other(rng, old)
    else:
        holder[key] = rng.choice(TREES)
    return encoded(tree)


def _other(rng: random.Random, old: Any) -> Any:
    """Another value of the same kind."""
    match old:
        case bool():
            return not old
        case int():
            return rng.choice((*INTEGERS, old + 1, old - 1))
        case float():
            return rng.choice(FLOATS)
        case str():
            return rng.choice(STRINGS)
        case bytes():
            return rng.choice((old[:-1], old + b"\x00", old * 2, b"", bytes(len(old)), b"\xff" * len(old)))
        case list():
            return rng.choice((old * 2, old[1:], [*old, *old[:1]], []))
        case _:
            return rng.choice(TREES)


def _walk(tree: Any, places: list[tuple[Any, Any]]) -> None:
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in list(keys):
        places.append((tree, key))
        _walk(tree[key], places)


def _bytes(rng: random.Random, body: bytes) -> bytes:
    changed = bytearray(body or b"\x00")
    where = rng.randrange(len(changed))
    match rng.randrange(4):
        case 0:
            changed[where] ^= 1 << rng.randrange(8)
        case 1:
            changed[where] = rng.choice(b"\x00\x7f\x80\x90\xa0\xc0\xc1\xc4\xc6\xcb\xcf\xd3\xd9\xdb\xdc\xdd\xde\xdf\xff")
        case 2:
            changed[where:where] = rng.randbytes(rng.randrange(1, 9))
        case _:
            del changed[where : where + rng.randrange(1, 9)]
    return bytes(changed)


def _cut(rng: random.Random, body: bytes) -> bytes:
    return body[: rng.randrange(len(body) + 1)]


def _nested(rng: random.Random, body: bytes) -> bytes:
    where = rng.randrange(len(body) + 1)
    return body[:where] + rng.choice((b"\x91", b"\x81\xa1t")) * rng.choice((10, 600)) + body[where:]


def _counts(rng: random.Random, body: bytes) -> bytes:
    """A list, a map or bytes that say they are gigantic."""
    where = rng.randrange(len(body) + 1)
    return body[:where] + rng.choice((b"\xdd", b"\xdf", b"\xc6", b"\xdb")) + b"\xff\xff\xff\xf0" + body[where:]


def _wrapped(value: int, bits: int) -> int:
    value %= 2**bits
    return value - 2**bits if value >= 2 ** (bits - 1) else value
