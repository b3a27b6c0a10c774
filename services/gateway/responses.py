"""OpenAI's response documents and the bytes of streamed chunks.

Owns shapes. A chunk is a prefix and a suffix made once for each choice; only the text between them is encoded.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from services.gateway.calls import CallArguments, CallBegun, Piece, Said
from services.gateway.logprobs import LogprobForm, Position

encode = msgspec.json.Encoder().encode

CHUNK_END = b"\r\n"
CHUNK_HEADS = tuple(b"%x\r\n" % size for size in range(1024))
"""A table, because formatting a number costs as much as all else that is done for a token."""
DONE = b"data: [DONE]\n\n"


class PromptTokensDetails(msgspec.Struct):
    """Of the tokens of the prompts."""

    cached_tokens: int
    """Those whose KV an earlier request had left."""


class Usage(msgspec.Struct):
    """Tokens of a whole answer; a prompt counts once however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ChoiceText(msgspec.Struct):
    """One finished choice."""

    index: int
    text: str
    finish_reason: str
    positions: Sequence[Position] = ()
    """Log-probabilities of its tokens, if asked for."""
    calls: "Sequence[Call]" = ()


class CalledFunction(msgspec.Struct):
    """What is to be called."""

    name: str
    arguments: str


class Call(msgspec.Struct, tag_field="type", tag="function"):
    """A tool call of a finished choice."""

    id: str
    function: CalledFunction


class Affixes(NamedTuple):
    """The server-sent events of one choice: `opening`, `prefix + JSON string + suffix` for each text, `closing`."""

    opening: bytes
    prefix: bytes
    suffix: bytes
    before_logprobs: bytes
    """`prefix + JSON string + before_logprobs + JSON object + after_logprobs` is the event of a text with both."""
    after_logprobs: bytes
    call_prefix: bytes
    """As `prefix`, before a JSON object that is one part of a tool call."""
    closing: dict[str, bytes]
    """By finish reason."""


class Shape:
    """What the chunks or the document of one answer have in common."""

    def __init__(
        self,
        *,
        chat: bool,
        answer_id: str,
        created: int,
        model: str,
        include_usage: bool,
        calls: bool = False,
        logprobs: LogprobForm | None = None,
    ) -> None:
        self.chat = chat
        self.calls = calls
        """Choices may call tools."""
        self.logprobs = logprobs
        """How to write log-probabilities; None: nobody asked for any."""
        self.answer_id = answer_id
        self.created = created
        self.model = model
        self.include_usage = include_usage
        kind = "chat.completion.chunk" if chat else "text_completion"
        head = encode({"id": answer_id, "object": kind, "created": created, "model": model})
        self._head = b"data: " + head[:-1] + b',"choices":['
        # OpenAI's chunks carry `usage: null` when the last one is to carry the usage.
        self._tail = (b',"usage":null}' if include_usage else b"}") + b"\n\n"

    def affixes(self, index: int) -> Affixes:
        """The bytes of one choice's events."""
        place, end = b'{"index":%d,' % index, b"]" + self._tail
        unfinished = b',"finish_reason":null}' + end
        going_on = b',"logprobs":null' + unfinished
        if self.chat:
            opening = self._head + place + b'"delta":{"role":"assistant","content":""}' + going_on
            prefix, ending, empty = b'"delta":{"content":', b"}", b'"delta":{}'
        else:
            opening, prefix, ending, empty = b"", b'"text":', b"", b'"text":""'
        closing = {
            reason: self._head + place + empty + b',"logprobs":null,"finish_reason":"%s"}' % reason.encode() + end
            for reason in ("stop", "length", "tool_calls")
        }
        head = self._head + place
        return Affixes(
            opening=opening,
            prefix=head + prefix,
            suffix=ending + going_on,
            before_logprobs=ending + b',"logprobs":',
            after_logprobs=unfinished,
            call_prefix=head + b'"delta":{"tool_calls":[',
            closing=closing,
        )

    def text_event(self, affixes: Affixes, text: str, positions: Sequence[Position]) -> bytes:
        """A text, with the log-probabilities of its tokens if there are any."""
        if self.logprobs is None or not positions:
            return affixes.prefix + encode(text) + affixes.suffix
        numbers = encode(self.logprobs.document(positions))
        return affixes.prefix + encode(text) + affixes.before_logprobs + numbers + affixes.after_logprobs

    def ending(self, usage: Usage) -> bytes:
        """The last events of a stream."""
        if not self.include_usage:
            return DONE
        return self._head + b'],"usage":' + encode(usage) + b"}\n\n" + DONE

    def document(self, choices: list[ChoiceText], usage: Usage) -> bytes:
        """The whole answer at once."""
        return encode(
            {
                "id": self.answer_id,
                "object": "chat.completion" if self.chat else "text_completion",
                "created": self.created,
                "model": self.model,
                "choices": [self._choice(choice) for choice in choices],
                "usage": usage,
            }
        )

    def _choice(self, choice: ChoiceText) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.calls:
            message |= {"content": choice.text or None, "tool_calls": choice.calls}
        said = {"message": message} if self.chat else {"text": choice.text}
        numbers = None if self.logprobs is None else self.logprobs.document(choice.positions)
        return {"index": choice.index, **said, "logprobs": numbers, "finish_reason": choice.finish_reason}


def piece_event(affixes: Affixes, piece: Piece) -> bytes:
    """A part of an output with tool calls."""
    match piece:
        case Said(text):
            return affixes.prefix + encode(text) + affixes.suffix
        case CallBegun(number, call_id, name):
            function = {"name": name, "arguments": ""}
            delta: dict[str, Any] = {"index": number, "id": call_id, "type": "function", "function": function}
        case CallArguments(number, text):
            delta = {"index": number, "function": {"arguments": text}}
    return affixes.call_prefix + encode(delta) + b"]" + affixes.suffix


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


def error_event(body: bytes) -> bytes:
    """An error in the middle of a stream; no `[DONE]` follows, so that nobody takes the answer for whole."""
    return b"data: " + body + b"\n\n"


def chunk_head(size: int) -> bytes:
    """What precedes the `size` bytes of a chunk in HTTP/1.1's chunked transfer coding; `CHUNK_END` follows them."""
    return CHUNK_HEADS[size] if size < len(CHUNK_HEADS) else b"%x\r\n" % size


@lru_cache(1024)
def tail_of(suffix: bytes) -> bytes:
    """What ends the chunk of an event with this suffix: one object for all streams, so that it stays in the cache."""
    return suffix + CHUNK_END


def http_chunk(payload: bytes) -> bytes:
    """A whole chunk."""
    return chunk_head(len(payload)) + payload + CHUNK_END
