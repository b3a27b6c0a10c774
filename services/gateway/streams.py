"""The outputs that are being made, and what their readers have not taken yet.

Knows neither HTTP requests nor other services.
"""

import asyncio
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Protocol

from engine.tokenizer import TextStream
from policies.commands import FinishReason
from services.errors import RequestError
from services.gateway.calls import CallReader
from services.gateway.chunks import http_chunk, tail_of
from services.gateway.logprobs import LoggedText, Position
from services.gateway.running import Running
from services.gateway.shapes import ChoiceText, Ending, Shape, Totals, whole_calls
from services.gateway.text import StoppingText
from services.gateway.told import Told

REASONS = {FinishReason.STOP.value: "stop", FinishReason.LENGTH.value: "length"}
HIGH_WATER_BYTES = 64 * 2**10
"""Unsent bytes in the transport from which a reader counts as slow and its text is held back and joined."""


class HttpProtocol(Protocol):
    """What is asked of aiohttp's connection."""

    @property
    def writing_paused(self) -> bool:
        """The transport holds more than its high-water mark."""


class Answer:
    """One HTTP answer, of one or more choices. Ends exactly once: `done` with or without a `failure`."""

    def __init__(self, shape: Shape, prompt_tokens: int) -> None:
        self.shape = shape
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = 0
        """Of the prompts, as far as the requests have begun."""
        self.choices: list[Choice] = []
        self.running: dict[int, Running] = {}
        """Its requests that have not ended, one for each prompt, by id."""
        self.num_open = 0
        self.vectors: dict[int, bytes] = {}
        """Embeddings, float32, by choice; of answers made of them."""
        self.told = Told()
        self.unheard: dict[int, None] = {}
        """Its requests of which admission has not said yet that they were released or refused, by id."""
        self.failure: RequestError | None = None
        self.done = False
        self.late = False
        """Its reader was not given all that was made: whoever gives the rest calls `on_written`."""
        self.on_written: Callable[[Answer], None] = _ignore_answer
        self.slow_ns = 0
        """How long its reader was behind."""
        self.on_slow: Callable[[], None] = _ignore
        """Called when the reader left too much unread; whoever set it ends the answer."""
        self._waiter: asyncio.Future[None] | None = None

    @property
    def requests(self) -> list[int]:
        """Its requests, ended or not, in order."""
        return list(dict.fromkeys(choice.running.request for choice in self.choices))

    @property
    def is_behind(self) -> bool:
        """Something was made that its reader was not given."""
        return True

    @property
    def sequences(self) -> list[int]:
        """Ids of its choices, in order."""
        return list(dict.fromkeys(sequence for choice in self.choices for sequence in choice.running.sequences))

    def add(self, running: Running, text: TextStream, stops: Sequence[str]) -> "Choice":
        """A further choice, made by one of the answer's requests."""
        choice = Choice(running, len(self.choices), text, stops)
        self.choices.append(choice)
        running.choices.append(choice)
        self.num_open += 1
        return choice

    @property
    def totals(self) -> Totals:
        """What it comes to so far."""
        made = sum(choice.num_tokens for choice in self.choices)
        return Totals(self.prompt_tokens, self.cached_tokens, made, self.told.slo_class)

    @property
    def begun(self) -> bool:
        """There is something to send before it is done."""
        return False

    async def changed(self) -> None:
        """Wait until the answer has something for its HTTP handler to do."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        """Let the HTTP handler look."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, failure: RequestError) -> None:
        """There will be no more tokens."""
        if not self.done:
            self.failure = failure
            self.done = True
            self.flush()

    def show(self, choice: "Choice", text: str) -> None:
        """New text of a choice; `flush` follows before the frame is over."""
        choice.held += text

    def close(self, choice: "Choice", reason: str) -> None:
        """No more text of a choice; `flush` follows before the frame is over."""
        choice.finish_reason = reason
        self.num_open -= 1
        self.done = self.done or self.num_open == 0

    def flush(self) -> None:
        """The end of a frame."""
        if self.done:
            self.wake()

    def hold(self) -> None:
        """The reader is behind: text is joined until it catches up. Nothing to do where all is kept anyway."""

    def document(self) -> bytes:
        """The finished answer at once."""
        return self.shape.document([choice.whole() for choice in self.choices], self.totals)


class StreamedAnswer(Answer):
    """An answer written as it is made, once `attach` gave it a connection; until then its text is held."""

    def __init__(self, shape: Shape, prompt_tokens: int) -> None:
        super().__init__(shape, prompt_tokens)
        self._limit_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._protocol: HttpProtocol | None = None
        self._chunked = True
        self._opened = False
        self.ended = False
        """The last event was given to the connection."""
        self._slow_since_ns = 0

    @property
    def is_behind(self) -> bool:
        """Something was made that the connection was not given."""
        return self._transport is None or self.holding

    @property
    def begun(self) -> bool:
        """There is something to send."""
        return self.done or any(choice.held or choice.finish_reason for choice in self.choices)

    @property
    def holding(self) -> bool:
        """Something waits for the reader."""
        return not self.ended and (self.done or any(choice.held for choice in self.choices))

    def attach(self, transport: asyncio.Transport, protocol: HttpProtocol, *, limit_bytes: int, chunked: bool) -> None:
        """Write to this connection from now on, whose reader may leave so much unread. `chunked`: HTTP/1.1's coding,
        which HTTP/1.0 does not know.
        """
        self._limit_bytes = limit_bytes
        transport.set_write_buffer_limits(high=min(HIGH_WATER_BYTES, limit_bytes // 2))
        self._transport, self._protocol, self._chunked = transport, protocol, chunked
        for choice in self.choices:
            choice.write = transport.write
            choice.protocol = protocol
        self.flush()

    def flush(self) -> None:
        """Write what is held, as one chunk; or keep it while the reader is behind."""
        transport = self._transport
        if transport is None or self._protocol is None:
            if self.begun:
                self.wake()
            return
        if transport.is_closing() or self.ended:
            return
        if self._protocol.writing_paused:
            self._hold(transport)
            return
        payload = b"".join(self._parts())
        if payload:
            transport.write(http_chunk(payload) if self._chunked else payload)
        if self._slow_since_ns:
            self.slow_ns += time.monotonic_ns() - self._slow_since_ns
            self._slow_since_ns = 0
        if self.late:
            self.late = False
            self.on_written(self)
        direct = self._chunked and len(self.choices) == 1 and not self.done
        for choice in self.choices:
            choice.direct = direct and choice.stopping is None and choice.calls is None and choice.logged is None
        if self.done:
            self.ended = True
            self.wake()

    def hold(self) -> None:
        """The transport is above its high-water mark: from now on text is joined until the reader catches up."""
        for choice in self.choices:
            choice.direct = False
        self.wake()

    def _hold(self, transport: asyncio.Transport) -> None:
        self.hold()
        self._slow_since_ns = self._slow_since_ns or time.monotonic_ns()
        # Characters, not bytes: within a factor of four, and nothing is encoded twice.
        unread = transport.get_write_buffer_size() + sum(choice.num_held for choice in self.choices)
        if unread > self._limit_bytes:
            self.on_slow()

    def _parts(self) -> list[bytes]:
        parts = []
        for choice in self.choices:
            if not self._opened:
                parts.append(choice.shape.opening(self.totals))
            parts += choice.events()
        self._opened = True
        if self.failure is not None:
            parts.append(self.shape.error(self.failure))
        elif self.done:
            parts.append(self.shape.ending(self.totals, [choice.ending for choice in self.choices]))
        return parts


class Choice:
    """One output being made."""

    __slots__ = (
        "affix_bytes",
        "answer",
        "calls",
        "closed",
        "direct",
        "finish_reason",
        "held",
        "index",
        "keep",
        "logged",
        "num_shown",
        "output",
        "prefix",
        "protocol",
        "push",
        "running",
        "shape",
        "stop",
        "stopping",
        "suffix",
        "tail",
        "text",
        "write",
    )

    def __init__(self, running: Running, index: int, text: TextStream, stops: Sequence[str]) -> None:
        self.running = running
        self.answer = answer = running.answer
        self.index = index
        self.shape = answer.shape.choice(index)
        self.prefix = self.shape.prefix
        self.suffix = self.shape.suffix
        self.tail = tail_of(self.suffix)
        self.affix_bytes = len(self.prefix) + len(self.suffix)
        self.logged = LoggedText(text) if answer.shape.logged else None
        """Where log-probabilities wait for their text; None: none were asked for."""
        text = self.logged or text
        self.text = text
        self.push = text.push
        self.stopping = StoppingText(text, stops) if stops else None
        self.calls = CallReader(answer.shape.call_id) if answer.shape.calls else None
        self.output = array("i")
        """Tokens counted: the end-of-sequence token and the one that completes a stop string included."""
        self.keep = self.output.append
        self.held = ""
        """Text that no reader was given yet."""
        self.num_shown = 0
        """Characters that were given to a reader who is also given log-probabilities."""
        self.finish_reason = ""
        self.stop = ""
        """The stop string that ended it, if one did."""
        self.closed = False
        """The reader was told the finish reason."""
        self.direct = False
        """Text is written as it comes: no stop strings, nothing held, and the connection takes more."""
        self.write: Callable[[bytes], None] = _no_connection
        self.protocol: HttpProtocol | None = None

    def take(self, token: int, finish: int) -> str:
        """Account for a token. Returns the reason if the output ended with it: `stop`, `length`, `stop_string`."""
        answer = self.answer
        # A token can overtake the Admitted of its request: they come by different streams.
        self.running.admitted = self.running.was_admitted = True
        if self.stopping is not None:
            # An end-of-sequence token is no text.
            text, self.stop = ("", "") if finish == FinishReason.STOP else self.stopping.push(token)
            if not self.stop and finish:
                text += self.stopping.finish()
        else:
            text = "" if finish == FinishReason.STOP else self.push(token)
            if finish:
                text += self.text.finish()
        if text:
            answer.show(self, text)
        if self.stop and self.logged is not None:
            self.logged.cut(self.num_shown + len(self.held))
        reason = "stop_string" if self.stop else REASONS.get(finish, "")
        if reason:
            self.direct = False
            answer.close(self, "stop" if self.stop else reason)
        return reason

    @property
    def num_tokens(self) -> int:
        """Output so far."""
        return len(self.output)

    @property
    def num_held(self) -> int:
        """About how much its reader was not given yet."""
        return len(self.held) + (0 if self.logged is None else self.logged.num_bytes)

    def events(self) -> list[bytes]:
        """What its reader was not told yet, as events; nothing is held any more."""
        parts = []
        ending = bool(self.finish_reason) and not self.closed
        text, positions = self.held, self._positions(whole=ending)
        self.held = ""
        if self.calls is not None:
            pieces = self.calls.push(text) + (self.calls.finish() if ending else [])
            parts += [self.shape.piece(piece) for piece in pieces]
            text = ""  # log-probabilities, which are of calls too, come beside the pieces
        if text or positions:
            parts.append(self.shape.text(text, positions))
        if ending:
            parts.append(self.shape.closing(self.ending))
            self.closed = True
        return parts

    def whole(self) -> ChoiceText:
        """The finished output."""
        positions = self._positions(whole=True)
        if self.calls is None:
            return ChoiceText(self.index, self.held, self.ending, positions)
        said, calls = whole_calls(self.calls.push(self.held) + self.calls.finish())
        return ChoiceText(self.index, said, self.ending, positions, calls)

    def _positions(self, *, whole: bool) -> list[Position]:
        """Log-probabilities to go with what is held, and with what makes no text if this is the last of it."""
        if self.logged is None:
            return []
        self.num_shown += len(self.held)
        return self.logged.rest() if whole else self.logged.shown(self.num_shown)

    @property
    def ending(self) -> Ending:
        """Why it ended, as the client is told."""
        called = self.calls is not None and self.calls.num_calls > 0
        reason = "tool_calls" if called and self.finish_reason == "stop" else self.finish_reason
        return Ending(reason, self.stop or None)


def _ignore() -> None:
    """Nobody asked to be told."""


def _ignore_answer(answer: Answer) -> None:
    """Nobody asked to be told."""


def _no_connection(data: bytes) -> None:
    raise RuntimeError(f"{len(data)} bytes for an answer that has no connection yet")
