"""OpenAI's response documents and the bytes of its streamed chunks.

Owns shapes. A chunk is a prefix and a suffix made once for each choice; only the text between them is encoded.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from services.errors import RequestError
from services.gateway.calls import CallArguments, CallBegun, Piece, Said
from services.gateway.logprobs import LogprobForm, Position
from services.gateway.shapes import ChoiceText, Ending, Totals, encode

DONE = b"data: [DONE]\n\n"


class PromptTokensDetails(msgspec.Struct):
    """Of the tokens of the prompts."""

    cached_tokens: int


class Usage(msgspec.Struct):
    """Tokens of a whole answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, totals: Totals) -> "Usage":
        """As OpenAI counts them."""
        prompt, made = totals.prompt_tokens, totals.output_tokens
        return cls(prompt, made, prompt + made, PromptTokensDetails(totals.cached_tokens))


class OpenAiShape:
    """An answer of /v1/completions, and what one of /v1/chat/completions has in common with it."""

    document_kind = "text_completion"
    chunk_kind = "text_completion"
    before_text, after_text, empty = b'"text":', b"", b'"text":""'
    """What surrounds the text of a choice, and stands for none."""
    call_id = "call_"

    def __init__(
        self,
        *,
        answer_id: str,
        created: int,
        model: str,
        include_usage: bool,
        calls: bool = False,
        logprobs: LogprobForm | None = None,
    ) -> None:
        self.calls = calls
        self.logged = logprobs is not None
        self.logprobs = logprobs
        """How to write log-probabilities; None: nobody asked for any."""
        self.answer_id = answer_id
        self.created = created
        self.model = model
        self.include_usage = include_usage
        head = encode({"id": answer_id, "object": self.chunk_kind, "created": created, "model": model})
        self.start = b"data: " + head[:-1]
        self.head = self.start + b',"choices":['
        # OpenAI's chunks carry `usage: null` when the last one is to carry the usage.
        self.tail = (b',"usage":null}' if include_usage else b"}") + b"\n\n"

    def choice(self, index: int) -> "OpenAiChoice":
        """As `Shape.choice`."""
        return OpenAiChoice(self, index)

    def opening(self, place: bytes, totals: Totals) -> bytes:
        """The event before a choice's first text, whose chunk begins with `place`."""
        del place, totals
        return b""

    def with_tier(self, totals: Totals) -> bytes:
        """What chunks begin with, where they say the class that serves the request."""
        tier = b',"service_tier":' + encode(totals.slo_class) if totals.slo_class else b""
        return self.start + tier + b',"choices":['

    def ending(self, totals: Totals, endings: Sequence[Ending]) -> bytes:
        """As `Shape.ending`."""
        del endings
        if not self.include_usage:
            return DONE
        return self.with_tier(totals) + b'],"usage":' + encode(Usage.of(totals)) + b"}\n\n" + DONE

    def error(self, failure: RequestError) -> bytes:
        """As `Shape.error`; no `[DONE]` follows."""
        return b"data: " + failure.body + b"\n\n"

    def document(self, choices: Sequence[ChoiceText], totals: Totals) -> bytes:
        """As `Shape.document`."""
        document = {
            "id": self.answer_id,
            "object": self.document_kind,
            "created": self.created,
            "model": self.model,
            "choices": [self._choice(choice) for choice in choices],
            "usage": Usage.of(totals),
        }
        return encode(document | ({"service_tier": totals.slo_class} if totals.slo_class else {}))

    def said(self, choice: ChoiceText) -> dict[str, Any]:
        """What a choice of the document says."""
        return {"text": choice.text}

    def _choice(self, choice: ChoiceText) -> dict[str, Any]:
        numbers = None if self.logprobs is None else self.logprobs.document(choice.positions)
        rest = {"logprobs": numbers, "finish_reason": choice.ending.reason}
        return {"index": choice.index, **self.said(choice), **rest}


class ChatShape(OpenAiShape):
    """An answer of /v1/chat/completions."""

    document_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    before_text, after_text, empty = b'"delta":{"content":', b"}", b'"delta":{}'

    def opening(self, place: bytes, totals: Totals) -> bytes:
        """As `OpenAiShape.opening`."""
        delta = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        return self.with_tier(totals) + place + delta + self.tail

    def said(self, choice: ChoiceText) -> dict[str, Any]:
        """As `OpenAiShape.said`."""
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.calls:
            message |= {"content": choice.text or None, "tool_calls": choice.calls}
        return {"message": message}


class OpenAiChoice:
    """The chunks of one choice."""

    def __init__(self, shape: OpenAiShape, index: int) -> None:
        self._shape = shape
        self._place = b'{"index":%d,' % index
        self._start = shape.head + self._place
        self._unfinished = b',"finish_reason":null}]' + shape.tail
        self.prefix = self._start + shape.before_text
        self.suffix = shape.after_text + b',"logprobs":null' + self._unfinished

    def opening(self, totals: Totals) -> bytes:
        """As `ChoiceShape.opening`."""
        return self._shape.opening(self._place, totals)

    def text(self, text: str, positions: Sequence[Position]) -> bytes:
        """As `ChoiceShape.text`."""
        if self._shape.logprobs is None or not positions:
            return self.prefix + encode(text) + self.suffix
        numbers = encode(self._shape.logprobs.document(positions))
        return self.prefix + encode(text) + self._shape.after_text + b',"logprobs":' + numbers + self._unfinished

    def piece(self, piece: Piece) -> bytes:
        """As `ChoiceShape.piece`."""
        match piece:
            case Said(text):
                return self.text(text, ())
            case CallBegun(number, call_id, name):
                function = {"name": name, "arguments": ""}
                delta: dict[str, Any] = {"index": number, "id": call_id, "type": "function", "function": function}
            case CallArguments(number, text):
                delta = {"index": number, "function": {"arguments": text}}
        return self._start + b'"delta":{"tool_calls":[' + encode(delta) + b"]" + self.suffix

    def closing(self, ending: Ending) -> bytes:
        """As `ChoiceShape.closing`."""
        reason = ending.reason.encode()
        return self._start + self._shape.empty + b',"logprobs":null,"finish_reason":"%s"}]' % reason + self._shape.tail
