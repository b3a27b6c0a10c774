"""Random schemas and a model that knows nothing: every output must parse and validate."""

import json
import random
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from engine.grammar import lark

CHECKED_FORMATS = ("uuid", "ipv4")
"""Not `date`: 29 February is let through in every year."""
NUM_SCHEMAS = 240
LIMIT_TOKENS = 700
PATTERNS = (
    "^[a-z]{1,5}$",
    "^(\\d{3}-)?\\d{2}$",
    "^[A-Z][a-z]{2}( [A-Z][a-z]{2}){0,2}$",
    "^(yes|no|perhaps)$",
    "^#[0-9a-f]{6}$",
)
FORMATS = ("date", "uuid", "ipv4")
Schema = dict[str, Any]


class Schemas:
    """A seeded source of schemas whose documents have bounded sizes."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311  a test that can be repeated, no secret
        self._defs: dict[str, Schema] = {}

    def document(self) -> Schema:
        source = self._random
        self._defs = {}
        schema = source.choice((self._object, self._object, self._array, self._any_of, self._scalar))(3)
        if self._defs:
            schema["$defs"] = self._defs
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A title", **schema}

    def _schema(self, depth: int) -> Schema:
        kinds: tuple[Callable[[int], Schema], ...] = (self._scalar, self._scalar)
        if depth:
            kinds += (self._object, self._array, self._tuple, self._any_of, self._reference)
        return self._random.choice(kinds)(depth)

    def _scalar(self, _: int) -> Schema:
        source = self._random
        low = source.randint(-500, 500)
        high = low + source.randint(0, 1000)
        return source.choice(
            (
                {"type": "string", "maxLength": source.randint(0, 8)},
                {"type": "string", "minLength": 2, "maxLength": source.randint(2, 6), "description": "Some text."},
                {"type": "string", "pattern": source.choice(PATTERNS)},
                {"type": "string", "format": source.choice(FORMATS)},
                {"type": "integer", "minimum": low, "maximum": high},
                {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": high + 2},
                {"type": "integer", "minimum": 0, "maximum": 1000, "multipleOf": source.choice((1, 5, 25))},
                {"type": "number", "minimum": low, "maximum": high, "multipleOf": 0.5},
                {"type": "boolean"},
                {"type": "null"},
                {"type": ["boolean", "null"], "default": None},
                {"const": source.choice(("x", 5, None, True, {"a": [1]}, '\N{SNOWMAN} "quoted" \\ </tool_call>'))},
                {"enum": source.sample(["red", "green", "blau\N{SNOWMAN}", 1, 2.5, None, False, ["a"], {"k": "v"}], 4)},
            )
        )

    def _object(self, depth: int) -> Schema:
        source = self._random
        names = source.sample(["id", "name", "a b", "größe", "x-1", "_", "list", "type"], source.randint(0, 4))
        properties = {name: self._schema(depth - 1) for name in names}
        required = [name for name in names if source.random() < 0.6]
        source.shuffle(required)
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def _array(self, depth: int) -> Schema:
        least = self._random.randint(0, 2)
        return {
            "type": "array",
            "items": self._schema(depth - 1),
            "minItems": least,
            "maxItems": least + self._random.randint(0, 2),
        }

    def _tuple(self, depth: int) -> Schema:
        return {
            "type": "array",
            "prefixItems": [self._schema(depth - 1), self._schema(0)],
            "items": False,
            "minItems": self._random.randint(0, 2),
        }

    def _any_of(self, depth: int) -> Schema:
        return {"anyOf": [self._schema(depth - 1) for _ in range(self._random.randint(1, 3))]}

    def _reference(self, depth: int) -> Schema:
        name = f"part{depth}_{self._random.randint(0, 2)}"
        if name not in self._defs:
            self._defs[name] = self._schema(depth - 1)
        return {"$ref": f"#/$defs/{name}"}


@pytest.mark.timeout(300)
def test_every_output_of_240_random_schemas_validates(engine: Any, tokenizer: Any, follow: Any) -> None:
    source = Schemas(11)
    schemas = [source.document() for _ in range(NUM_SCHEMAS)]
    assert {lark.problem_of(schema) for schema in schemas} == {""}
    outputs: list[list[int]] = []
    for first in range(0, NUM_SCHEMAS, 60):
        grammars = [lark.document(schema) for schema in schemas[first : first + 60]]
        outputs += follow(engine, grammars, LIMIT_TOKENS, in_flight=1 + first // 60 % 2, first_seed=first)
    assert max(map(len, outputs)) < LIMIT_TOKENS
    texts = [tokenizer.decode(output) for output in outputs]
    assert len(set(texts)) > NUM_SCHEMAS / 2
    for schema, text in zip(schemas, texts, strict=True):
        validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker(CHECKED_FORMATS))
        validator.validate(json.loads(text))
