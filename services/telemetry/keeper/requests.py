"""Requests as they are put together from records, and what is known of each when it has ended.

Owns the open requests and their sequences. A batch of steps is taken apart in arrays, once for all tokens in it; what
is done one by one is done for a sequence and batch, or once for a request.
"""

from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.telemetry.keeper.parts import Int64Array, first_parts, token_parts
from services.telemetry.records import Began, Ended, Let, Step, Written
from services.telemetry.stamps import CAUSES, CHUNK_COLUMNS, TOKEN_PARTS, TOKEN_STAMPS

NUM_PARTS = len(TOKEN_PARTS)
WAITS = ("limits", "fairness", "window")
"""Of admission, in order."""
STAMP_COLUMNS = (*TOKEN_STAMPS, "cause", "step", "executor", "scheduler_epoch")
"""Of what is kept of a token: int64 each; `cause` is an index into `stamps.CAUSES`."""
WRITTEN, CAUSE = STAMP_COLUMNS.index("written"), STAMP_COLUMNS.index("cause")
NO_TOKENS: Int64Array = np.empty((0, len(STAMP_COLUMNS)), np.int64)
NO_CHUNKS: Int64Array = np.empty((0, len(CHUNK_COLUMNS)), np.int64)


class Output:
    """One sequence: a choice of a request."""

    __slots__ = ("chunks", "first_written_ns", "held", "last_written_ns", "request", "tokens")

    def __init__(self, request: "Request") -> None:
        self.request = request
        self.tokens: list[Int64Array] = []
        """[n, STAMP_COLUMNS] each, in order."""
        self.held: list[Int64Array] = []
        """Made, but not with the socket yet: `written` is 0."""
        self.first_written_ns = 0
        self.last_written_ns = 0
        """0: the reader has nothing of it yet."""
        self.chunks = NO_CHUNKS

    def stamps(self) -> Int64Array:
        """[n, STAMP_COLUMNS] of all tokens that the reader got."""
        if len(self.tokens) > 1:
            self.tokens = [np.concatenate(self.tokens)]
        return self.tokens[0] if self.tokens else NO_TOKENS


class Request:
    """A request that has begun."""

    __slots__ = ("began", "ended", "let", "outputs", "prefix_hit_tokens")

    def __init__(self, began: Began) -> None:
        self.began = began
        self.let: Let | None = None
        self.ended: Ended | None = None
        self.prefix_hit_tokens = 0
        self.outputs = {began.request + choice: Output(self) for choice in range(began.num_choices)}

    @property
    def slo_class(self) -> str:
        """Empty before its release."""
        return "" if self.let is None else self.let.slo_class

    def first(self) -> tuple[Int64Array, Output] | None:
        """Stamps of its first token with the output it is of: the one that its reader got first."""
        begun = [output for output in self.outputs.values() if output.tokens]
        if not begun:
            return None
        output = min(begun, key=lambda output: int(output.tokens[0][0, WRITTEN]))
        return output.tokens[0][0], output

    def first_parts(self) -> Int64Array | None:
        """`stamps.FIRST_PARTS` of the time to its first token, ns; None: it got none, or its way is not known."""
        first = self.first()
        if first is None or self.let is None:
            return None
        stamps, output = first
        let, began = self.let, self.began
        limits_ns, fairness_ns, window_ns = (round(let.waits_s.get(cause, 0.0) * 1e9) for cause in WAITS)
        # What admission itself took belongs to the way through it.
        begun_ns = max(let.queued_ns, let.released_ns - limits_ns - fairness_ns - window_ns)
        planned_ns = output.chunks[0, CHUNK_COLUMNS.index("planned")] if len(output.chunks) else stamps[1]
        edges = [
            began.received_ns,
            began.tokenized_ns,
            begun_ns,
            begun_ns + limits_ns,
            begun_ns + limits_ns + fairness_ns,
            let.released_ns,
            int(planned_ns),
            *stamps[3:7].tolist(),
        ]
        return first_parts(np.array(edges, np.int64))


class Batch(msgspec.Struct):
    """Tokens that readers got since the last batch, the first one of each output left out."""

    parts: Int64Array
    """[n, stamps.TOKEN_PARTS] ns."""
    causes: NDArray[np.int64]
    """[n]."""
    gaps_ns: Int64Array
    """[n]."""
    owners: list[Request]
    """[m], each with its slice of the rows."""
    bounds: list[int]
    """[m + 1], of those slices."""
    begun: list[tuple[Output, bool]] = []
    """Outputs whose first token is in the batch, with whether it is their request's first."""
    whole: list[tuple[Request, int]] = []
    """Tokens of answers that were written whole, likewise: nobody waited between two of them."""


class Open:
    """The requests that have not ended, by id. What is said of an unknown one is dropped and counted."""

    def __init__(self) -> None:
        self.requests: dict[int, Request] = {}
        self.num_unknown = 0
        """Tokens of sequences that nobody announced."""
        self.num_tokens = 0
        self._outputs: dict[int, Output] = {}
        self._steps: list[Step] = []
        self._begun: list[tuple[Output, bool]] = []
        self._whole: list[tuple[Request, int]] = []
        self._written: list[tuple[int, Written]] = []
        """With the number of steps before it in this batch."""

    def begin(self, began: Began) -> None:
        """A request was handed on."""
        request = self.requests[began.request] = Request(began)
        self._outputs.update(request.outputs)

    def request_of(self, sequence: int) -> Request | None:
        """The request that a sequence is a choice of."""
        output = self._outputs.get(sequence)
        return None if output is None else output.request

    def let(self, let: Let) -> None:
        """Admission released it."""
        request = self.requests.get(let.request)
        if request is not None:
            request.let = let

    def step(self, step: Step) -> None:
        """Tokens came; they are looked at with the batch."""
        self._steps.append(step)

    def written(self, written: Written) -> None:
        """What was held is written."""
        self._written.append((len(self._steps), written))

    def end(self, ended: Ended) -> Request | None:
        """It is over: no more is expected of it. All that came before must be in a batch by now."""
        request = self.requests.pop(ended.request, None)
        if request is not None:
            request.ended = ended
            for sequence in request.outputs:
                del self._outputs[sequence]
        return request

    def batch(self) -> Batch:
        """Put what came since the last one where it belongs."""
        steps, self._steps = self._steps, []
        later, self._written = self._written, []
        flushed: dict[int, list[tuple[int, int]]] = {}
        for position, written in later:
            for sequence in written.sequences:
                flushed.setdefault(sequence, []).append((position, written.written_ns))
        for step in steps:
            self._note(step)
        rows, steps_of, sequences = _columns(steps)
        self.num_tokens += len(rows)
        owners: list[Request] = []
        got: list[Int64Array] = []
        before: list[Int64Array] = []
        for sequence, where in _groups(sequences):
            output = self._outputs.get(sequence)
            if output is None:
                self.num_unknown += len(where)
                continue
            self._take(output, rows[where], steps_of[where], flushed.pop(sequence, []), (owners, got, before))
        for sequence, times in flushed.items():
            output = self._outputs.get(sequence)
            if output is not None:
                self._take(output, NO_TOKENS, np.empty(0, np.int64), times, (owners, got, before))
        begun, self._begun = self._begun, []
        whole, self._whole = self._whole, []
        return _batch(owners, got, before, begun, whole)

    def _note(self, step: Step) -> None:
        for request, num_tokens in step.prefix_hits:
            if request in self.requests:
                self.requests[request].prefix_hit_tokens = num_tokens
        for sequence, chunks in step.chunks.items():
            output = self._outputs.get(sequence)
            if output is not None:
                output.chunks = np.frombuffer(chunks, np.int64).reshape(-1, len(CHUNK_COLUMNS))

    def _take(
        self,
        output: Output,
        rows: Int64Array,
        steps_of: Int64Array,
        times: list[tuple[int, int]],
        out: tuple[list[Request], list[Int64Array], list[Int64Array]],
    ) -> None:
        """Add rows to an output; `out` gets what its reader has now, and when it had the token before each."""
        fresh: list[Int64Array] = []
        for position, written_ns in times:
            for held in output.held:
                held[:, WRITTEN] = written_ns
            fresh += output.held
            output.held = []
            rows[(rows[:, WRITTEN] == 0) & (steps_of < position), WRITTEN] = written_ns
        known = rows[:, WRITTEN] > 0
        # Written in order: from the first that is held on, all are.
        num_known = len(rows) if known.all() else int(np.argmin(known))
        if num_known < len(rows):
            output.held.append(rows[num_known:])
        if num_known:
            fresh.append(rows[:num_known])
        if not fresh:
            return
        table = fresh[0] if len(fresh) == 1 else np.concatenate(fresh)
        if not output.tokens:
            output.first_written_ns = int(table[0, WRITTEN])
            self._begun.append((output, not any(each.tokens for each in output.request.outputs.values())))
        output.tokens.append(table)
        previous = np.concatenate(([output.last_written_ns], table[:-1, WRITTEN]))
        first = not output.last_written_ns
        output.last_written_ns = int(table[-1, WRITTEN])
        if not output.request.began.streamed:
            self._whole.append((output.request, len(table) - first))
        elif len(table) > first:
            owners, got, before = out
            owners.append(output.request)
            got.append(table[first:])
            before.append(previous[first:])


def _columns(steps: list[Step]) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Rows of all steps: [n, STAMP_COLUMNS], the step of each within the batch, and its sequence."""
    if not steps:
        return NO_TOKENS, np.empty(0, np.int64), np.empty(0, np.int64)
    sequences = np.concatenate([np.frombuffer(step.sequences, np.int64) for step in steps])
    counts = np.array([len(step.sequences) // 8 for step in steps])
    steps_of = np.repeat(np.arange(len(steps)), counts)
    shared = np.array(
        [(step.planned_ns, step.launched_ns, step.computed_ns, step.returned_ns, step.gateway_in_ns) for step in steps],
        np.int64,
    )
    rows = np.empty((len(sequences), len(STAMP_COLUMNS)), np.int64)
    rows[:, 0] = np.frombuffer(b"".join(step.ready_ns for step in steps), np.int64)
    rows[:, 1:6] = shared[steps_of]
    rows[:, WRITTEN] = np.frombuffer(b"".join(step.written_ns for step in steps), np.int64)
    rows[:, CAUSE] = np.frombuffer(b"".join(step.causes for step in steps), np.int8)
    rows[:, CAUSE + 1 :] = np.array([(step.step, step.executor, step.scheduler_epoch) for step in steps], np.int64)[
        steps_of
    ]
    return rows, steps_of, sequences


def _groups(sequences: Int64Array) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Each sequence with its rows, in order."""
    if not len(sequences):
        return
    order = np.argsort(sequences, kind="stable")
    ordered = sequences[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
    for where in np.split(order, starts[1:]):
        yield int(sequences[where[0]]), where


def _batch(
    owners: list[Request],
    got: list[Int64Array],
    before: list[Int64Array],
    begun: list[tuple[Output, bool]],
    whole: list[tuple[Request, int]],
) -> Batch:
    bounds = np.cumsum([0, *map(len, got)]).tolist()
    if not got:
        empty = np.empty(0, np.int64)
        return Batch(np.empty((0, NUM_PARTS), np.int64), empty, empty, [], [0], begun, whole)
    table, previous = np.concatenate(got), np.concatenate(before)
    gaps = np.maximum(table[:, WRITTEN] - previous, 0)
    causes = np.clip(table[:, CAUSE], 0, len(CAUSES) - 1)
    return Batch(token_parts(previous, table[:, : WRITTEN + 1]), causes, gaps, owners, bounds, begun, whole)
