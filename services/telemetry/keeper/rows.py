"""Tokens of a batch of steps as columns, each sequence's together and in order, so that what is done with them can be
done for all at once.

Knows records of steps; not requests.
"""

from collections.abc import Iterator

import numpy as np

from services.telemetry.keeper.parts import Int64Array
from services.telemetry.records import Step
from services.telemetry.stamps import TOKEN_STAMPS

STAMP_COLUMNS = (*TOKEN_STAMPS, "cause", "step", "executor", "scheduler_epoch")
"""Of what is kept of a token: int64 each; `cause` is an index into `stamps.CAUSES`."""
WRITTEN, CAUSE = STAMP_COLUMNS.index("written"), STAMP_COLUMNS.index("cause")
SHARED = 5
"""Columns that a step has once: those from `planned` to `gateway_in`, after `ready`."""


class Rows:
    """Tokens by sequence.

    Attributes:
        num: tokens.
        table: int64 [STAMP_COLUMNS, num].
        steps_of: int64 [num], the step of each within the batch.
        sequences: of each group.
        bounds: where each group begins, and the last one ends.
        is_written: whether a group's tokens are all with their reader.
        first_ns, last_ns: when a group's first and last token were written.
    """

    __slots__ = ("bounds", "first_ns", "is_written", "last_ns", "num", "sequences", "steps_of", "table")

    def __init__(self, sequences: Int64Array, table: Int64Array, steps_of: Int64Array) -> None:
        self.num = len(sequences)
        self.table = table
        self.steps_of = steps_of
        starts = np.flatnonzero(np.diff(sequences, prepend=sequences[:1] - 1))
        self.sequences: list[int] = sequences[starts].tolist()
        self.bounds: list[int] = [*starts.tolist(), self.num]
        written = table[WRITTEN]
        least = np.minimum.reduceat(written, starts) if self.num else written
        self.is_written: list[bool] = (least > 0).tolist()
        self.first_ns: list[int] = written[starts].tolist()
        self.last_ns: list[int] = written[np.array(self.bounds[1:], np.int64) - 1].tolist() if self.num else []

    def groups(self) -> Iterator[tuple[int, int, int]]:
        """(sequence, start, end) of each."""
        return zip(self.sequences, self.bounds, self.bounds[1:], strict=False)

    def written_before(self) -> Int64Array:
        """[num], when the token before each was written; of a group's first it means nothing."""
        before = np.empty(self.num, np.int64)
        before[1:] = self.table[WRITTEN, :-1]
        before[:1] = 0
        return before


def rows_of(steps: list[Step]) -> Rows:
    """Rows of all steps."""
    if not steps:
        return Rows(np.empty(0, np.int64), np.empty((len(STAMP_COLUMNS), 0), np.int64), np.empty(0, np.int64))
    sequences = np.frombuffer(b"".join(step.sequences for step in steps), np.int64)
    order = np.argsort(sequences, kind="stable")
    counts = np.array([len(step.sequences) // 8 for step in steps])
    steps_of = np.repeat(np.arange(len(steps)), counts)[order]
    of_steps = np.array(
        [
            (
                step.planned_ns,
                step.launched_ns,
                step.computed_ns,
                step.returned_ns,
                step.gateway_in_ns,
                step.step,
                step.executor,
                step.scheduler_epoch,
            )
            for step in steps
        ],
        np.int64,
    ).T.copy()
    table = np.empty((len(STAMP_COLUMNS), len(order)), np.int64)
    table[0] = np.frombuffer(b"".join(step.ready_ns for step in steps), np.int64)[order]
    # `clip`, for numpy buffers what may raise; the indices are right.
    of_steps[:SHARED].take(steps_of, axis=1, out=table[1 : 1 + SHARED], mode="clip")
    table[WRITTEN] = np.frombuffer(b"".join(step.written_ns for step in steps), np.int64)[order]
    table[CAUSE] = np.frombuffer(b"".join(step.causes for step in steps), np.int8)[order]
    of_steps[SHARED:].take(steps_of, axis=1, out=table[CAUSE + 1 :], mode="clip")
    return Rows(sequences[order], table, steps_of)
