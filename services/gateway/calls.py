"""Finds the tool calls in an output's text, which comes in pieces. The form is `engine.grammar.hermes`'s, and exact:
the grammar saw to it. Knows no tokens and no response bodies.
"""

import secrets
from typing import NamedTuple

from engine.grammar.hermes import ARGUMENTS, CLOSING, NAME, OPENING, SEPARATOR


class Said(NamedTuple):
    """Text outside of calls."""

    text: str


class CallBegun(NamedTuple):
    """The name of a further call is known."""

    number: int
    """Of the call in its output, from 0."""
    id: str
    name: str


class CallArguments(NamedTuple):
    """A further piece of a call's arguments, which are a JSON document."""

    number: int
    """Of the call in its output, from 0."""
    text: str


Piece = Said | CallBegun | CallArguments


class CallReader:
    """One output. The line break that separates a call from what precedes it is no text."""

    def __init__(self, call_id: str) -> None:
        self.num_calls = 0
        self._call_id = call_id
        """How the ids of calls begin."""
        self._held = ""
        """Text that may be part of a marker."""
        self._read = self._read_text

    def push(self, text: str) -> list[Piece]:
        """What this text completes."""
        self._held += text
        pieces: list[Piece] = []
        while self._read(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """What is left when no more text comes. The markers of a call that was cut off are lost."""
        held, self._held = self._held, ""
        return [Said(held)] if held and self._read == self._read_text else []

    def _read_text(self, pieces: list[Piece]) -> bool:
        before, opening, after = self._held.partition(OPENING)
        if opening:
            before = before.removesuffix(SEPARATOR)
            self._held, self._read = after, self._read_name
        else:
            before, self._held = _split(self._held, SEPARATOR + OPENING, OPENING)
        if before:
            pieces.append(Said(before))
        return bool(opening)

    def _read_name(self, pieces: list[Piece]) -> bool:
        name, marker, after = self._held.partition(ARGUMENTS)
        if marker:
            pieces.append(CallBegun(self.num_calls, self._call_id + secrets.token_hex(12), name.removeprefix(NAME)))
            self.num_calls += 1
            self._held, self._read = after, self._read_arguments
        return bool(marker)

    def _read_arguments(self, pieces: list[Piece]) -> bool:
        # JSON has no line break within a string, so what closes a call cannot be part of its arguments.
        before, closing, after = self._held.partition(CLOSING)
        if closing:
            self._held, self._read = after, self._read_text
        else:
            before, self._held = _split(self._held, CLOSING)
        if before:
            pieces.append(CallArguments(self.num_calls - 1, before))
        return bool(closing)


def _split(text: str, *markers: str) -> tuple[str, str]:
    """The text up to where one of the markers may have begun, and the rest."""
    for length in range(min(len(text), max(map(len, markers)) - 1), 0, -1):
        if any(marker.startswith(text[-length:]) for marker in markers):
            return text[:-length], text[-length:]
    return text, ""
