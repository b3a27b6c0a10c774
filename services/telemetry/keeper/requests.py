"""Requests as they are put together from records, and what is known of each when it has ended.

Owns the open requests and their sequences. A batch of steps is taken apart in arrays, once for all tokens in it; what
is done one by one is done for a sequence and batch, or once for a request.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.telemetry.keeper.parts import Int64Array, parts_of_one, token_parts
from services.telemetry.keeper.rows import CAUSE, STAMP_COLUMNS, WRITTEN, Rows, rows_of
from services.telemetry.records import Began, Ended, Let, Step, Written
from services.telemetry.stamps import CAUSES, CHUNK_COLUMNS

WAITS = ("limits", "fairness", "window")
"""Of admission, in order."""
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

    def first_parts(self) -> list[int] | None:
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
        return parts_of_one(edges[0], edges)


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
            for sequence, output in request.outputs.items():
                del self._outputs[sequence]
                # Else they hold each other, and their memory waits for the garbage collector's longest round.
                del output.request
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
        rows = rows_of(steps)
        self.num_tokens += rows.num
        looked = Looked(rows)
        for position, (sequence, start, end) in enumerate(rows.groups()):
            output = self._outputs.get(sequence)
            if output is None:
                self.num_unknown += end - start
                looked.leave_out(start, end)
            elif (
                sequence in flushed or output.held or not rows.is_written[position] or not output.request.began.streamed
            ):
                table, steps_of = rows.table[:, start:end].T.copy(), rows.steps_of[start:end]
                looked.leave_out(start, end)
                self._take(output, table, steps_of, flushed.pop(sequence, []), looked)
            else:
                self._add(output, position, looked)
        for sequence, times in flushed.items():
            output = self._outputs.get(sequence)
            if output is not None:
                self._take(output, NO_TOKENS, np.empty(0, np.int64), times, looked)
        begun, self._begun = self._begun, []
        whole, self._whole = self._whole, []
        return looked.batch(begun, whole)

    def _add(self, output: Output, position: int, looked: "Looked") -> None:
        """Add a group to an output whose reader has had all before it, and all of it: almost always so."""
        rows = looked.rows
        start, end = rows.bounds[position], rows.bounds[position + 1]
        first_ns, last_ns = rows.first_ns[position], rows.last_ns[position]
        is_first = not output.last_written_ns
        if is_first:
            self._note_begin(output, first_ns)
        looked.follow(position, output, is_first=is_first)
        # A copy: else one long answer would keep the tokens of all that ever ran beside it.
        output.tokens.append(rows.table[:, start:end].T.copy())
        output.last_written_ns = last_ns

    def _note_begin(self, output: Output, first_ns: int) -> None:
        output.first_written_ns = first_ns
        self._begun.append((output, not any(each.tokens for each in output.request.outputs.values())))

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
        looked: "Looked",
    ) -> None:
        """Add rows to an output, of which some may be held, or some before them written only now."""
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
            self._note_begin(output, int(table[0, WRITTEN]))
        output.tokens.append(table)
        previous = np.concatenate(([output.last_written_ns], table[:-1, WRITTEN]))
        first = not output.last_written_ns
        output.last_written_ns = int(table[-1, WRITTEN])
        if not output.request.began.streamed:
            self._whole.append((output.request, len(table) - first))
        elif len(table) > first:
            looked.add(output.request, table[first:], previous[first:])


class Looked:
    """What is put together of a batch: the rows that follow what their readers had, and those that came late."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._keep = np.ones(rows.num, np.bool_)
        self._before = rows.written_before()
        self._owners: list[Request] = []
        self._sizes: list[int] = []
        self._late: list[tuple[Request, Int64Array, Int64Array]] = []

    def leave_out(self, start: int, end: int) -> None:
        """These rows are nobody's, or are looked at by themselves."""
        self._keep[start:end] = False

    def follow(self, position: int, output: Output, *, is_first: bool) -> None:
        """A group that follows what its reader had. `is_first`: that was nothing, and nobody waited between."""
        start, end = self.rows.bounds[position], self.rows.bounds[position + 1]
        if is_first:
            self._keep[start] = False
        self._before[start] = output.last_written_ns
        if end - start > is_first:
            self._owners.append(output.request)
            self._sizes.append(end - start - is_first)

    def add(self, owner: Request, table: Int64Array, before_ns: Int64Array) -> None:
        """Rows [n, STAMP_COLUMNS] that were taken by themselves, with when their reader had the token before each."""
        self._late.append((owner, table, before_ns))

    def batch(self, begun: list[tuple[Output, bool]], whole: list[tuple[Request, int]]) -> Batch:
        """All of it."""
        table, before = self.rows.table, self._before
        if not self._keep.all():
            table, before = table[:, self._keep], before[self._keep]
        if self._late:
            owners, tables, befores = zip(*self._late, strict=True)
            self._owners += owners
            self._sizes += map(len, tables)
            table = np.concatenate([table, *(one.T for one in tables)], axis=1)
            before = np.concatenate([before, *befores])
        gaps = np.maximum(table[WRITTEN] - before, 0)
        causes = np.clip(table[CAUSE], 0, len(CAUSES) - 1)
        parts = token_parts(before, table[: WRITTEN + 1].T)
        return Batch(parts, causes, gaps, self._owners, np.cumsum([0, *self._sizes]).tolist(), begun, whole)
