"""Anthropic's response documents and the events of its streamed messages.

Owns shapes. A message is one choice made of content blocks: text, and one for each tool call.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from services.errors import RequestError
from services.gateway.calls import CallArguments, CallBegun, Piece, Said
from services.gateway.logprobs import Position
from services.gateway.shapes import Call, ChoiceText, Ending, Totals, encode

REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
"""Why an output ended -> what Anthropic calls it, where no stop sequence did it."""


class MessageShape:
    """An answer of /v1/messages."""

    call_id = "toolu_"
    logged = False

    def __init__(self, *, answer_id: str, model: str, calls: bool) -> None:
        self.calls = calls
        self.answer_id = answer_id
        self._model = model

    def choice(self, index: int) -> "MessageBlocks":
        """As `Shape.choice`; there is one."""
        del index
        return MessageBlocks(self)

    def ending(self, totals: Totals, endings: Sequence[Ending]) -> bytes:
        """As `Shape.ending`."""
        usage = _usage(totals)
        delta = {"type": "message_delta", "delta": _stopped(endings[0]), "usage": usage}
        return event("message_delta", delta) + event("message_stop", {"type": "message_stop"})

    def error(self, failure: RequestError) -> bytes:
        """As `Shape.error`."""
        return b"event: error\ndata: " + failure.anthropic_body + b"\n\n"

    def document(self, choices: Sequence[ChoiceText], totals: Totals) -> bytes:
        """As `Shape.document`. A call that was cut off is left out: its arguments are no document."""
        [choice] = choices
        blocks = [_call(call) for call in choice.calls if _is_whole(call)]
        if choice.text or not self.calls:
            blocks.insert(0, {"type": "text", "text": choice.text})
        return encode(self.message(totals, blocks, _stopped(choice.ending)))

    def message(self, totals: Totals, blocks: list[dict[str, Any]], stopped: dict[str, Any]) -> dict[str, Any]:
        """A message of these content blocks."""
        head = {"id": self.answer_id, "type": "message", "role": "assistant", "model": self._model}
        tier = {"service_tier": totals.slo_class} if totals.slo_class else {}
        return head | {"content": blocks} | stopped | {"usage": _usage(totals) | tier}


class MessageBlocks:
    """The events of a message's content; one block is open at a time."""

    prefix = (
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        b'"delta":{"type":"text_delta","text":'
    )
    suffix = b"}}\n\n"

    def __init__(self, shape: MessageShape) -> None:
        self._shape = shape
        self._open = ""
        """Kind of the open block; empty: none is."""
        self._num_closed = 0

    def opening(self, totals: Totals) -> bytes:
        """As `ChoiceShape.opening`."""
        message = self._shape.message(totals, [], {"stop_reason": None, "stop_sequence": None})
        events = event("message_start", {"type": "message_start", "message": message})
        events += event("ping", {"type": "ping"})
        # Where calls are possible, nobody knows yet what the first block will be.
        return events if self._shape.calls else events + self._begin({"type": "text", "text": ""})

    def text(self, text: str, positions: Sequence[Position]) -> bytes:
        """As `ChoiceShape.text`; Anthropic has no log-probabilities."""
        del positions
        return self._delta({"type": "text_delta", "text": text})

    def piece(self, piece: Piece) -> bytes:
        """As `ChoiceShape.piece`."""
        match piece:
            case Said(text):
                begun = b"" if self._open == "text" else self._end() + self._begin({"type": "text", "text": ""})
                return begun + self.text(text, ())
            case CallBegun(_, call_id, name):
                return self._end() + self._begin({"type": "tool_use", "id": call_id, "name": name, "input": {}})
            case CallArguments(_, text):
                return self._delta({"type": "input_json_delta", "partial_json": text})

    def closing(self, ending: Ending) -> bytes:
        """As `ChoiceShape.closing`; why it ended comes with the usage."""
        del ending
        return self._end()

    def _begin(self, block: dict[str, Any]) -> bytes:
        self._open = block["type"]
        document = {"type": "content_block_start", "index": self._num_closed, "content_block": block}
        return event("content_block_start", document)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        document = {"type": "content_block_delta", "index": self._num_closed, "delta": delta}
        return event("content_block_delta", document)

    def _end(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        self._num_closed += 1
        return event("content_block_stop", {"type": "content_block_stop", "index": self._num_closed - 1})


def event(name: str, document: dict[str, Any]) -> bytes:
    """A server-sent event with a name."""
    return b"event: " + name.encode() + b"\ndata: " + encode(document) + b"\n\n"


def _usage(totals: Totals) -> dict[str, Any]:
    """Anthropic counts what the prefix cache had apart from the rest of the prompt."""
    return {
        "input_tokens": totals.prompt_tokens - totals.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": totals.cached_tokens,
        "output_tokens": totals.output_tokens,
    }


def _stopped(ending: Ending) -> dict[str, Any]:
    reason = REASONS[ending.reason] if ending.stop is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": ending.stop}


def _call(call: Call) -> dict[str, Any]:
    arguments = msgspec.Raw(call.function.arguments.encode())
    return {"type": "tool_use", "id": call.id, "name": call.function.name, "input": arguments}


def _is_whole(call: Call) -> bool:
    try:
        msgspec.json.decode(call.function.arguments)
    except msgspec.DecodeError:
        return False
    return True
