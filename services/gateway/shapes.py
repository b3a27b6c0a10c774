"""What an answer is to those who write it: parts of outputs in, documents and server-sent events out.

Owns what every form of answer must be able to do, and what an output comes to. The forms themselves are OpenAI's
(`responses`) and Anthropic's (`message_responses`).
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from services.errors import RequestError
from services.gateway.calls import CallArguments, CallBegun, Piece, Said
from services.gateway.logprobs import Position

encode = msgspec.json.Encoder().encode


class Totals(NamedTuple):
    """Of a whole answer, as far as it has come; a prompt counts once however many choices it has."""

    prompt_tokens: int
    cached_tokens: int
    """Of the prompts, those whose KV an earlier request had left."""
    output_tokens: int
    slo_class: str
    """Under which it runs; empty: it does not yet."""


class CalledFunction(msgspec.Struct):
    """What is to be called."""

    name: str
    arguments: str


class Call(msgspec.Struct, tag_field="type", tag="function"):
    """A tool call of a finished choice."""

    id: str
    function: CalledFunction


class Ending(NamedTuple):
    """How an output ended."""

    reason: str
    """`stop`, `length` or `tool_calls`."""
    stop: str | None = None
    """The stop string that did it, if one did."""


class ChoiceText(msgspec.Struct):
    """One finished choice."""

    index: int
    text: str
    ending: Ending
    positions: Sequence[Position] = ()
    """Log-probabilities of its tokens, if asked for."""
    calls: Sequence[Call] = ()


class ChoiceShape(Protocol):
    """The events of one choice, in order: `opening`, texts and pieces, `closing`.

    `prefix + JSON string + suffix` is the event of a text, where nothing comes beside it.
    """

    prefix: bytes
    suffix: bytes

    def opening(self, totals: Totals) -> bytes:
        """What precedes the first text."""

    def text(self, text: str, positions: Sequence[Position]) -> bytes:
        """A text, with the log-probabilities of its tokens if there are any."""

    def piece(self, piece: Piece) -> bytes:
        """A part of an output with tool calls."""

    def closing(self, ending: Ending) -> bytes:
        """What follows the last text."""


class Shape(Protocol):
    """What the events or the document of one answer have in common."""

    answer_id: str
    calls: bool
    """Choices may call tools."""
    call_id: str
    """How the ids of calls begin."""
    logged: bool
    """Log-probabilities are shown."""

    def choice(self, index: int) -> ChoiceShape:
        """The events of one choice."""

    def ending(self, totals: Totals, endings: Sequence[Ending]) -> bytes:
        """The last events of a stream, with how each choice ended."""

    def error(self, failure: RequestError) -> bytes:
        """An error in the middle of a stream: its last event, so that nobody takes the answer for whole."""

    def document(self, choices: Sequence[ChoiceText], totals: Totals) -> bytes:
        """The whole answer at once."""


def whole_calls(pieces: list[Piece]) -> tuple[str, list[Call]]:
    """What an output says, and its calls; arguments may be cut off."""
    said, calls = "", list[Call]()
    for piece in pieces:
        match piece:
            case Said(text):
                said += text
            case CallBegun(_, call_id, name):
                calls.append(Call(call_id, CalledFunction(name, "")))
            case CallArguments(number, text):
                calls[number].function.arguments += text
    return said, calls
