"""From token frames to outputs: one callback for each frame walks its rows and writes.

No task, queue or future for a token: a row is one dictionary lookup, one table lookup, one string encoded and one
write. Knows neither HTTP requests nor other services; whoever owns those is told through a callback.
"""

from collections.abc import Callable
from time import monotonic_ns

import numpy as np
from numpy.typing import NDArray

from policies.commands import FinishReason
from services.clocks import ClockDifference
from services.gateway.chunks import CHUNK_HEADS, chunk_head
from services.gateway.logprobs import per_row
from services.gateway.shapes import encode
from services.gateway.streams import Answer, Choice
from services.gateway.tracing import Tracing
from services.wire import TokenFrame
from services.wire_parts import LogprobColumns

GOES_ON = 0
STAMP_MASK = 15
"""Writes are stamped in groups of sixteen: a group takes some tens of microseconds."""
UNCOUNTED = (FinishReason.CANCELLED.value, FinishReason.ERROR.value)
"""No token of the output: why it is cut short comes with its RequestEnded."""
WITHOUT_TEXT = (FinishReason.STOP.value, *UNCOUNTED)


def fits(frame: TokenFrame, vocabulary_size: int) -> bool:
    """Whether its tokens are of this vocabulary, and its log-probabilities of its rows."""
    tokens = np.frombuffer(frame.tokens, np.uint32)
    return not len(tokens) or int(tokens.max()) < vocabulary_size


class Pump:
    """All outputs being made, by sequence id."""

    def __init__(self, on_end: Callable[[int, Choice, str], None], tracing: Tracing) -> None:
        self._tracing = tracing
        self.choices: dict[int, Choice] = {}
        self.num_discarded = 0
        """Tokens that came for nobody."""
        self._on_end = on_end
        """Called with (sequence, choice, reason of `Choice.take`) when an output has ended by itself."""

    def deliver(self, frame: TokenFrame, clock: ClockDifference, scheduler_epoch: int) -> None:
        """Hand each token of a step to its reader."""
        gateway_in_ns = monotonic_ns()
        choices = self.choices
        heads, num_heads, join = CHUNK_HEADS, len(CHUNK_HEADS), b"".join
        touched: dict[Answer, None] = {}
        for request, num_tokens in frame.prefix_hits:
            if request in choices:
                choices[request].answer.cached_tokens += num_tokens
                choices[request].running.cached_tokens += num_tokens
        for sequence in frame.chunks:  # those whose first token this is
            choice = choices.get(sequence)
            if choice is not None and choice.running.first_token_ns is None:
                choice.running.first_token_ns = clock.ours(frame.returned_ns)
        for sequence, vector in frame.vectors.items():
            choice = choices.get(sequence)
            if choice is not None:
                choice.answer.vectors[choice.index] = vector
        sequences = memoryview(frame.sequences).cast("q").tolist()
        tokens = memoryview(frame.tokens).cast("i").tolist()
        finishes = memoryview(frame.finish).cast("b").tolist()
        if frame.logprobs is not None:
            self._note(sequences, finishes, frame.logprobs)
        held_back: list[tuple[int, Answer]] = []
        written_ns: list[int] = []
        rows = zip(sequences, tokens, finishes, strict=True)
        for row, (sequence, token, finish) in enumerate(rows):
            if not row & STAMP_MASK:
                written_ns.append(monotonic_ns())
            choice = choices.get(sequence)
            if choice is None:  # cancelled, or ended by a stop string while further tokens were on their way
                self.num_discarded += 1
                continue
            if choice.direct and finish == GOES_ON:
                choice.keep(token)
                text = choice.push(token)
                if text:
                    encoded = encode(text)
                    size = choice.affix_bytes + len(encoded)
                    head = heads[size] if size < num_heads else chunk_head(size)
                    try:
                        choice.write(join((head, choice.prefix, encoded, choice.tail)))
                    except RuntimeError:  # closed in this turn of the loop; its handler is about to be cancelled
                        choice.direct = False
                        continue
                # One look in sixteen: a few chunks above the mark are no matter, a call for each token is.
                if not len(choice.output) & 15 and choice.protocol.writing_paused:  # type: ignore[union-attr]
                    choice.answer.hold()
            elif finish not in UNCOUNTED:
                choice.keep(token)
                reason = choice.take(token, finish)
                touched[choice.answer] = None
                held_back.append((row, choice.answer))
                if reason:
                    self._on_end(sequence, choice, reason)
        for answer in touched:
            answer.flush()
            answer.late = answer.is_behind
        if self._tracing.on:
            written = self._written(frame, (written_ns, held_back))
            self._tracing.step(frame, clock, gateway_in_ns, written, scheduler_epoch)

    def _written(self, frame: TokenFrame, writes: tuple[list[int], list[tuple[int, Answer]]]) -> NDArray[np.int64]:
        """When each row was: `writes` are when each group of rows was begun, and the rows not written at once."""
        begun_ns, held_back = writes
        now_ns = monotonic_ns()
        # A group was with its sockets when the next one was begun.
        written_ns = np.repeat(np.array([*begun_ns[1:], now_ns], np.int64), STAMP_MASK + 1)[: len(frame.finish)]
        for row, answer in held_back:
            written_ns[row] = 0 if answer.late else now_ns
        return written_ns

    def _note(self, sequences: list[int], finishes: list[int], logprobs: LogprobColumns) -> None:
        """Log-probabilities of the tokens about to be delivered; those that are no text have none to show."""
        rows = per_row(logprobs.unpack(len(sequences)))
        for sequence, finish, entries in zip(sequences, finishes, rows, strict=True):
            choice = self.choices.get(sequence)
            if entries and choice is not None and choice.logged is not None and finish not in WITHOUT_TEXT:
                choice.logged.note(entries)
