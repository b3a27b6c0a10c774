"""Log-probabilities on their way to a reader: kept with the text that their tokens made, in OpenAI's two forms.

Owns which tokens' numbers go with which text. Knows no token frames and no HTTP.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from engine.interface import Logprobs
from engine.tokenizer import TextStream

LEAST = -9999.0
"""Stands for numbers that JSON cannot carry, as in OpenAI's answers."""
POSITION_BYTES = 128
"""About what an entry takes when it is sent."""


class Position(NamedTuple):
    """One token of an output."""

    offset: int
    """Characters of the output before it."""
    entries: list[tuple[int, float]]
    """Token ids and log-probabilities: its own, then the likeliest ones."""


class LoggedText:
    """A `TextStream` that knows where in the text each token came, and keeps their positions until they are shown."""

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream
        self._num_characters = 0
        self._positions: deque[Position] = deque()

    def push(self, token_id: int) -> str:
        """As `TextStream.push`."""
        text = self._stream.push(token_id)
        self._num_characters += len(text)
        return text

    def finish(self) -> str:
        """As `TextStream.finish`."""
        text = self._stream.finish()
        self._num_characters += len(text)
        return text

    def note(self, entries: list[tuple[int, float]]) -> None:
        """Log-probabilities of the token that is pushed next."""
        self._positions.append(Position(self._num_characters, entries))

    @property
    def num_bytes(self) -> int:
        """About what is kept."""
        return POSITION_BYTES * sum(len(position.entries) for position in self._positions)

    def shown(self, num_characters: int) -> list[Position]:
        """The positions not returned before whose tokens begin within this much of the text."""
        positions = self._positions
        taken = []
        while positions and positions[0].offset < num_characters:
            taken.append(positions.popleft())
        return taken

    def cut(self, num_characters: int) -> None:
        """The text ends here: what comes after it is nobody's."""
        while self._positions and self._positions[-1].offset >= num_characters:
            self._positions.pop()

    def rest(self) -> list[Position]:
        """All that was not returned before."""
        taken = list(self._positions)
        self._positions.clear()
        return taken


class TokenNames(Protocol):
    """Where the texts of single tokens come from."""

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for."""


class LogprobForm(Protocol):
    """How an endpoint writes log-probabilities."""

    def document(self, positions: Sequence[Position]) -> dict[str, Any]:
        """The `logprobs` object of a choice, or of a chunk of it."""


class ChatForm:
    """Of /v1/chat/completions."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names

    def document(self, positions: Sequence[Position]) -> dict[str, Any]:
        """As `LogprobForm.document`."""
        content = []
        for position in positions:
            own, *top = (self._entry(*entry) for entry in position.entries)
            content.append({**own, "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = self._names.token_bytes(token_id)
        return {"token": _text(data, ""), "logprob": max(logprob, LEAST), "bytes": list(data)}


class CompletionForm:
    """Of /v1/completions. The alternatives hold the sampled token too, so there may be one more than asked for."""

    def __init__(self, names: TokenNames) -> None:
        self._names = names

    def document(self, positions: Sequence[Position]) -> dict[str, Any]:
        """As `LogprobForm.document`."""
        entries = [[self._entry(*entry) for entry in position.entries] for position in positions]
        return {
            "tokens": [own[0] for own, *_ in entries],
            "token_logprobs": [own[1] for own, *_ in entries],
            "top_logprobs": [_by_text([*top, own]) for own, *top in entries],
            "text_offset": [position.offset for position in positions],
        }

    def _entry(self, token_id: int, logprob: float) -> tuple[str, float]:
        return _text(self._names.token_bytes(token_id), "bytes:"), max(logprob, LEAST)


def _text(data: bytes, mark: str) -> str:
    """A token as text; one that is no whole characters is written in escapes, behind a mark."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return mark + "".join(f"\\x{byte:02x}" for byte in data)


def _by_text(entries: list[tuple[str, float]]) -> dict[str, float]:
    """Of tokens with the same text the likeliest, which comes first."""
    numbers: dict[str, float] = {}
    for text, logprob in entries:
        numbers.setdefault(text, logprob)
    return numbers


def per_row(logprobs: Logprobs) -> list[list[tuple[int, float]]]:
    """The entries of each row, none for rows that did not ask."""
    entries = list(zip(logprobs.tokens.tolist(), logprobs.values.tolist(), strict=True))
    rows, begin = [], 0
    for count in logprobs.num_entries.tolist():
        rows.append(entries[begin : begin + count])
        begin += count
    return rows
