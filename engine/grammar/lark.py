"""What an output may say, written as a grammar in the dialect of Lark that the llguidance library reads.

A grammar is one string: it travels with its request and is the key under which it is compiled. A string's `format` is
held to by its shape: 29 February is a date of any year. Torch-free.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llguidance import LLMatcher

from engine.grammar.hermes import ARGUMENTS, CLOSING, NAME, OPENING, SEPARATOR, TRIGGER

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
JSON_FORM: Mapping[str, Any] = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "lenient": False,
    "coerce_one_of": False,
}
"""JSON is written as Python's json.dumps does, which models have read most of: with whitespace at will, a model that
likes it could go on for ever. What cannot be enforced is refused instead of ignored."""
FORM_KEY = "x-guidance"
"""Where the library looks for these options in a schema; what a client wrote there is replaced."""


class Function(NamedTuple):
    """A function that a model may call."""

    name: str
    """Letters, digits, `_` and `-`: it stands in the grammar as it is."""
    parameters: Mapping[str, Any]
    """JSON schema of the arguments."""


def problem_of(schema: Mapping[str, Any]) -> str:
    """Why no grammar can be made of a JSON schema, in the library's words; empty if one can."""
    try:
        grammar = LLMatcher.grammar_from_json_schema(dict(schema), overrides=dict(JSON_FORM))  # type: ignore[arg-type]
    except ValueError as error:
        return str(error)
    return LLMatcher.validate_grammar(grammar)


def document(schema: Mapping[str, Any]) -> str:
    """A JSON document that the schema accepts, and nothing else."""
    return f"start: {_json(schema)}\n"


def calls(functions: Sequence[Function], *, at_most_one: bool) -> str:
    """Calls of these functions and nothing else, at least one."""
    return f"start: {_literal(OPENING)} rest\n{_rest(functions, at_most_one=at_most_one)}"


def text_or_calls(functions: Sequence[Function], *, at_most_one: bool) -> str:
    """Any text, after which calls may follow. Text that begins a call has to go on as one."""
    after_trigger = _literal(OPENING.removeprefix(TRIGGER))
    return (
        f"start: TEXT | opening {after_trigger} rest\n"
        "TEXT: /(.|\\n)*/\n"
        f"opening[lazy]: /(.|\\n)*{TRIGGER}/\n"
        f"{_rest(functions, at_most_one=at_most_one)}"
    )


def document_or_calls(schema: Mapping[str, Any], functions: Sequence[Function], *, at_most_one: bool) -> str:
    """Either a JSON document that the schema accepts or calls."""
    rest = _rest(functions, at_most_one=at_most_one)
    return f"start: {_json(schema)} | {_literal(OPENING)} rest\n{rest}"


def _rest(functions: Sequence[Function], *, at_most_one: bool) -> str:
    """What follows the opening of the first call."""
    more = "" if at_most_one else f"({_literal(SEPARATOR + OPENING)} call {_literal(CLOSING)})*"
    forms = (f"{_literal(NAME + each.name + ARGUMENTS)} {_json(each.parameters)}" for each in functions)
    return f"rest: call {_literal(CLOSING)} {more}\ncall: {' | '.join(forms)}\n"


def _json(schema: Mapping[str, Any]) -> str:
    # Each schema is a document of its own here, so its references find their definitions.
    return f"%json {json.dumps({**schema, FORM_KEY: JSON_FORM})}"


def _literal(text: str) -> str:
    return json.dumps(text)
