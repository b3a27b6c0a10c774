"""Requests as nobody should send them, seeded: bodies made from our own schemas and then damaged, heads and bytes too.

Owns what is sent; knows nothing of answers.
"""

import copy
import gzip
import json
import random
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from ops.bench.http_odds import (
    CHAT,
    COMPLETIONS,
    HOSTILE_SCHEMAS,
    KINDS,
    LOOKED_AT,
    MESSAGES,
    METHODS,
    NESTED,
    NUMBERS,
    ODD_TARGETS,
    SCHEMA,
    SEEDS,
    STRINGS,
)

MAX_BODY_BYTES = 5 * 2**20
"""Somewhat more than a gateway takes."""


class Case(NamedTuple):
    """One connection's worth."""

    sent: bytes
    is_whole: bool
    """It is one request that is complete as HTTP: there must be an answer."""
    kind: str
    ends: str = ""
    """`half`: no more is sent, `reset`: the connection is dropped; empty: it waits for what comes."""


class Cases:
    """From one seed.

    Args:
        seed: the same cases for the same one.
        keys: that are good, those of operators among them.
    """

    def __init__(self, seed: int, keys: tuple[str, ...]) -> None:
        self._random = random.Random(seed)
        self._keys = keys
        self._schemas = {path: msgspec.json.schema(kind) for path, kind in KINDS.items()}

    def __iter__(self) -> Iterator[Case]:
        """Without end."""
        makers: tuple[Callable[[], Case], ...] = (self._seed, self._made, self._mutant, self._head, self._bytes)
        while True:
            [make] = self._random.choices(makers, (5, 30, 35, 20, 10))
            yield make()

    # --- bodies -------------------------------------------------------------------------------------------------------

    def _seed(self) -> Case:
        """As documented."""
        path = self._random.choice(tuple(SEEDS))
        return self._whole("seed", path, _encoded(self._good(path)))

    def _made(self) -> Case:
        """From the schema of its endpoint, here and there as the schema forbids."""
        path = self._random.choice(tuple(KINDS))
        schema = self._schemas[path]
        body = self._value(schema, schema["$defs"], depth=0)
        if isinstance(body, dict) and self._random.random() < 0.9:
            body["model"] = "demo"
        if isinstance(body, dict) and path in (CHAT, COMPLETIONS, MESSAGES) and self._random.random() < 0.8:
            body["max_tokens"] = self._random.randint(1, 3)
        return self._whole("from a schema", path, _encoded(body))

    def _mutant(self) -> Case:
        """A good body with something wrong."""
        path = self._random.choice(tuple(SEEDS))
        body: Any = self._good(path)
        for _ in range(self._random.choice((1, 1, 2, 4))):
            body = self._damaged(body)
        data = _encoded(body)
        if self._random.random() < 0.2:
            data = self._bytes_damaged(data)
        return self._whole("damaged body", path, data)

    def _good(self, path: str) -> dict[str, Any]:
        return {"model": "demo", **copy.deepcopy(self._random.choice(SEEDS[path]))}

    def _damaged(self, value: Any) -> Any:
        """The same with one place changed."""
        chance = self._random.random()
        if isinstance(value, dict) and value and chance < 0.8:
            name = self._random.choice(list(value))
            match self._random.randrange(6):
                case 0:
                    del value[name]
                case 1:
                    value[self._random.choice(STRINGS[:12])] = copy.deepcopy(value[name])
                case _:
                    value[name] = self._damaged(value[name])
            return value
        if isinstance(value, list) and value and chance < 0.8:
            place = self._random.randrange(len(value))
            match self._random.randrange(6):
                case 0:
                    del value[place]
                case 1:
                    value = value * (self._random.choice((2, 70, 5000)) if len(json.dumps(value)) < 200 else 2)
                case _:
                    value[place] = self._damaged(value[place])
            return value
        return self._odd()

    def _odd(self) -> Any:
        """A value that is seldom right."""
        match self._random.randrange(7):
            case 0:
                return self._random.choice(STRINGS)
            case 1:
                return self._random.choice(NUMBERS)
            case 2:
                return self._random.choice((None, True, False))
            case 3:
                return copy.deepcopy(self._random.choice(([], {}, [[]], {"type": "text"}, {"a": {"b": []}})))
            case 4:
                return self._random.choice(tuple(NESTED))
            case 5:
                return [self._random.randrange(-5, 5000) for _ in range(self._random.choice((1, 10, 3000)))]
        return copy.deepcopy(self._random.choice(HOSTILE_SCHEMAS))

    def _value(self, schema: dict[str, Any], definitions: dict[str, Any], depth: int) -> Any:
        """Of a JSON schema, one time in twenty of none."""
        if self._random.random() < 0.03:
            return self._odd()
        if "$ref" in schema:
            return self._value(definitions[schema["$ref"].rpartition("/")[2]], definitions, depth + 1)
        if "anyOf" in schema:
            return self._value(self._random.choice(schema["anyOf"]), definitions, depth + 1)
        if "enum" in schema:
            return self._random.choice(schema["enum"])
        if "const" in schema:
            return schema["const"]
        match schema.get("type"):
            case "object":
                return self._object(schema, definitions, depth)
            case "array":
                size = self._random.choice((0, 1, 1, 2, 3)) if depth < 12 else 0
                size = max(size, schema.get("minItems", 0))
                items = schema.get("items", {})
                return [self._value(items, definitions, depth + 1) for _ in range(size)]
            case "integer" | "number":
                return self._number(schema)
            case "boolean":
                return self._random.random() < 0.5
            case "null":
                return None
            case "string":
                return self._random.choice(("user", "assistant", "weather", "demo", "word", *STRINGS))
        return copy.deepcopy(self._random.choice((1, "x", None, SCHEMA, *HOSTILE_SCHEMAS[:3])))

    def _object(self, schema: dict[str, Any], definitions: dict[str, Any], depth: int) -> dict[str, Any]:
        properties, required = schema.get("properties", {}), schema.get("required", ())
        made = {}
        for name, of in properties.items():
            if self._random.random() < (0.97 if name in required else 0.15 if depth < 12 else 0):
                made[name] = self._value(of, definitions, depth + 1)
        more = schema.get("additionalProperties")
        if not properties and isinstance(more, dict):
            made["7"] = self._value(more, definitions, depth + 1)
        if not properties and self._random.random() < 0.6:
            made |= copy.deepcopy(SCHEMA if self._random.random() < 0.7 else self._random.choice(HOSTILE_SCHEMAS))
        return made

    def _number(self, schema: dict[str, Any]) -> Any:
        low = schema.get("minimum", schema.get("exclusiveMinimum", -3))
        high = schema.get("maximum", schema.get("exclusiveMaximum", 5))
        edge = self._random.choice((low, high, low - 1, high + 1, 0, 1, 2))
        return edge if schema["type"] == "integer" else edge + self._random.choice((0, 0.5, 1e-9))

    # --- heads --------------------------------------------------------------------------------------------------------

    def _whole(self, kind: str, path: str, data: bytes, method: str = "POST") -> Case:
        """A request that is right as HTTP."""
        headers = {"host": "x", "content-type": "application/json", **self._key()}
        headers["connection"] = "close"
        if self._random.random() < 0.2:
            return Case(
                _head(method, path, headers | {"transfer-encoding": "chunked"}) + self._chunked(data), True, kind
            )
        return Case(_head(method, path, headers | {"content-length": str(len(data))}) + data, True, kind)

    def _head(self) -> Case:
        """Odd lines and headers around a good body, or none."""
        path = self._random.choice((*SEEDS, *LOOKED_AT, *ODD_TARGETS))
        method = self._random.choice(("GET", "POST", *METHODS))
        data = _encoded(self._good(path)) if path in SEEDS else self._random.choice((b"", b"", b"{}", b"x" * 5000))
        headers = {"host": "x", **self._key(), "connection": "close", "content-length": str(len(data))}
        whole = method not in ("", "CONNECT") and " " not in path
        sent = b""
        match self._random.randrange(12):
            case 0:
                encoding = self._random.choice(("gzip", "deflate", "br", "zstd", "identity", "gzip, gzip", "\x7f"))
                packed = {"gzip": gzip.compress(data), "deflate": zlib.compress(data)}.get(encoding, data)
                data = packed if self._random.random() < 0.7 else packed[: len(packed) // 2]
                headers |= {"content-encoding": encoding, "content-length": str(len(data))}
            case 1:
                headers["content-length"] = self._random.choice(("-1", "0x10", "1e3", "99999999999999999999", "", "+1"))
                whole = False
            case 2:
                headers["content-length"] = str(len(data) + 10)
                whole = False
            case 3:
                headers["transfer-encoding"] = self._random.choice(
                    ("chunked", "gzip, chunked", "chunked, chunked", "x")
                )
                whole = False
            case 4:
                headers["expect"] = self._random.choice(("100-continue", "200-ok", ""))
            case 5:
                headers["traceparent"] = self._random.choice(
                    ("00-" + "0" * 32 + "-1-1", "x" * 3000, "\xff\xfe", "00-1")
                )
            case 6:
                headers |= {f"x-{number}": "y" * self._random.choice((1, 300, 9000)) for number in range(120)}
            case 7:
                headers |= {"upgrade": self._random.choice(("websocket", "h2c")), "connection": "upgrade"}
                whole = False
            case 8:
                headers |= {"origin": "https://elsewhere", "access-control-request-method": "POST"}
            case 9:
                headers["if-none-match"] = self._random.choice(('"x"', "*", '"' * 4000))
            case 10:
                version = self._random.choice(("HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/1.1 ", "http/1.1", ""))
                sent = _head(method, path, headers, version) + data
                whole = False
            case _:
                del headers["connection"]
                sent = (_head(method, path, headers) + data) * 2
                whole = False
        return Case(sent or _head(method, path, headers) + data, whole, "odd head", self._ending(whole))

    def _bytes(self) -> Case:
        """A request of which bytes are changed, cut or doubled, its head among them."""
        path = self._random.choice(tuple(SEEDS))
        sent = self._whole("", path, _encoded(self._good(path))).sent
        for _ in range(self._random.choice((1, 3, 20))):
            sent = self._bytes_damaged(sent)
        return Case(sent, False, "damaged bytes", self._ending(False))

    def _ending(self, whole: bool) -> str:
        return "" if whole else self._random.choice(("half", "half", "half", "half", "reset", ""))

    def _key(self) -> dict[str, str]:
        good = self._random.choice(self._keys)
        if self._random.random() < 0.9:
            return {"authorization": f"Bearer {self._keys[0]}"}
        odd = (
            "",
            "Bearer",
            "Bearer ",
            "Basic eDp5",
            f"bearer  {good}",
            f"Bearer {good}x",
            "Bearer \xff",
            f"Bearer {good}",
        )
        return self._random.choice(({}, {"x-api-key": good}, {"authorization": self._random.choice(odd)}))

    def _chunked(self, data: bytes) -> bytes:
        """In HTTP/1.1's coding, in pieces of all sizes."""
        pieces = []
        while data:
            size = self._random.choice((1, 7, 4096, len(data))) if len(data) < 3000 else len(data)
            piece, data = data[:size], data[size:]
            extension = b";a=b" if self._random.random() < 0.1 else b""
            pieces.append(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece))
        trailer = b"x: y\r\n" if self._random.random() < 0.05 else b""
        return b"".join([*pieces, b"0\r\n", trailer, b"\r\n"])

    def _bytes_damaged(self, data: bytes) -> bytes:
        place = self._random.randrange(len(data) + 1)
        match self._random.randrange(6):
            case 0:
                return data[:place]
            case 1:
                return data[:place] + bytes([self._random.randrange(256)]) + data[place + 1 :]
            case 2:
                return data[:place] + self._random.randbytes(self._random.choice((1, 4, 300))) + data[place:]
            case 3:
                end = min(len(data), place + self._random.choice((1, 10, 100)))
                return data[:place] + data[end:]
            case 4:
                end = min(len(data), place + self._random.choice((1, 10, 100)))
                return data[:end] + data[place:]
        return data[:place] + self._random.choice((b"\r\n", b"\n", b"\0", b"\r", b":", b'"', b"\xff")) + data[place:]


def _head(method: str, path: str, headers: dict[str, str], version: str = "HTTP/1.1") -> bytes:
    lines = [f"{method} {path} {version}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def _encoded(body: Any) -> bytes:
    """Lone surrogates are escaped: what is wrong is what they stand for."""
    text = json.dumps(body)
    for name, nested in NESTED.items():
        text = text.replace(f'"{name}"', nested, 1)
    return text.encode()[:MAX_BODY_BYTES]
