"""Progress of the sequences that hold a slot, as columns: one array operation touches them all.

Owns slots. A slot is one row in every column; it never moves, so that plans in flight can name rows by it. Does not
know policies or time.
"""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from policies.commands import NO_CAUSES, Int32Array
from policies.scheduling.causes import Cause
from policies.scheduling.lengths.survival import Refinement
from policies.scheduling.state import Sequence, SlotArray

FIRST_WIDTH = 64
"""Blocks of a table before it is widened."""
MAX_EXTENSIONS = 64
"""Extensions that wait to be written together."""
Scalar = TypeVar("Scalar", bound=np.generic)

NEVER = np.int32(2**30)
"""`end` of an unfinished prefill: no position reaches it."""


class Columns:
    """Struct of arrays over slots; `[:high]` have been used at least once.

    Attributes:
        sequence: id.
        position: KV position of the next token to plan, counted from 0.
        capacity: tokens that its blocks hold.
        tables: block tables, two-dimensional, less the last extensions; `table` has all.
        end: the position at which no output token is left to plan.
        deadline_s: last schedulable time of a decode.
        open: a decode that may be planned now (tokens left, its gateway reads).
        tbt_s, arrived_s, number, admitted, prompt_tokens, priority: as in `Sequence`.
        first_output: the position at which it has produced nothing; one further for each output token planned.
        estimate: as in `Sequence`, at its start; `estimates` follows what was produced since.
        shared: blocks of its table that were others' when it started.
        cause: `causes.Cause` of what the next token waits for, as far as it has been left out of a plan.
        any_cause: whether any of them is not 0.
        ahead: tokens for which room is taken before they are written.
        refinement: how estimates rise, None where the policy goes by no lengths.
    """

    def __init__(self, block_tokens: int, *, samples_first: bool) -> None:
        self.high = 0
        self.ahead = 0
        self.any_cause = False
        self.refinement: Refinement | None = None
        self._block_tokens = block_tokens
        self._samples_first = int(samples_first)
        self.sequences: list[Sequence | None] = []
        self._unused: list[int] = []
        self._all_open: SlotArray | None = None
        self._all_open_ids: NDArray[np.int64] | None = None
        self._all_open_tbt_s: NDArray[np.float64] | None = None
        self._least_tbt_s: float | None = None
        self._all_first = False
        self._extensions: list[tuple[SlotArray, Int32Array, Int32Array]] = []
        """Slots, their capacity before, the block each was given: not in `tables` yet."""
        self._plans_to_end = 0
        self.sequence = np.zeros(0, np.int64)
        self.position = np.zeros(0, np.int32)
        self.capacity = np.zeros(0, np.int32)
        self.tables = np.zeros((0, FIRST_WIDTH), np.int32)
        self.end = np.zeros(0, np.int32)
        self.deadline_s = np.zeros(0, np.float64)
        self.tbt_s = np.zeros(0, np.float64)
        self.arrived_s = np.zeros(0, np.float64)
        self.number = np.zeros(0, np.int64)
        self.admitted = np.zeros(0, np.int64)
        self.prompt_tokens = np.zeros(0, np.int32)
        self.priority = np.zeros(0, np.int32)
        self.open = np.zeros(0, np.bool_)
        self.first_output = np.zeros(0, np.int32)
        self.estimate = np.zeros(0, np.int32)
        self.shared = np.zeros(0, np.int32)
        self.cause = np.zeros(0, np.int8)

    def enter(self, sequence: Sequence, blocks: Int32Array, position: int, shared: int = 0) -> int:
        """Give a sequence a slot with its first blocks, of which those before `position` are filled and the first
        `shared` are others' too.
        """
        if self._unused:
            slot = self._unused.pop()
        else:
            slot = self.high
            self.high += 1
            self.sequences.append(None)
            if slot == len(self.position):
                self._grow()
        self.sequences[slot] = sequence
        self.sequence[slot] = sequence.id
        self.position[slot] = position
        self._widen(len(blocks))
        self.tables[slot, : len(blocks)] = blocks
        self.capacity[slot] = len(blocks) * self._block_tokens - self.ahead
        self.end[slot] = NEVER
        self.tbt_s[slot] = sequence.tbt_s
        self.arrived_s[slot] = sequence.arrived_s
        self.number[slot] = sequence.number
        self.admitted[slot] = sequence.admitted
        self.prompt_tokens[slot] = sequence.tokens_to_prefill
        self.priority[slot] = sequence.priority
        self.first_output[slot] = sequence.prompt_tokens - self._samples_first
        self.estimate[slot] = sequence.estimate
        self.shared[slot] = shared
        self.cause[slot] = Cause.PIPELINE
        if sequence.kept_tokens:
            lost = Cause.RESUMED if sequence.kept_tokens == sequence.brought_tokens else Cause.RECOMPUTE
            self.note_cause(slot, Cause.PREEMPTED if sequence.num_preemptions else lost)
        sequence.slot = slot
        return slot

    def reserve_ahead(self, num_tokens: int) -> None:
        """Take room for so many tokens before they are written, 0 or 1; those who lack it get it when they go on."""
        if self._extensions:
            self._write_extensions()
        self.capacity += self.ahead - num_tokens
        self.ahead = num_tokens

    def produced(self) -> NDArray[np.int32]:
        """Output tokens planned so far, of each slot that decodes."""
        return self.position - self.first_output

    def estimates(self) -> NDArray[np.int32]:
        """Output tokens that each slot that decodes is expected to come to."""
        if self.refinement is None:
            return self.estimate
        raised: NDArray[np.int32] = self.refinement.raised(self.estimate, self.produced())
        np.minimum(raised, self.end - self.first_output, out=raised)
        return raised

    def volumes(self) -> NDArray[np.int64]:
        """KV that each slot that decodes is expected to hold, summed over its steps."""
        prompts = (self.first_output + self._samples_first).astype(np.int64)
        estimates = self.estimates().astype(np.int64)
        return estimates * prompts + estimates * (estimates + 1) // 2

    def extend(self, slots: SlotArray, blocks: Int32Array) -> None:
        """One more block for each of these slots."""
        capacity = self.capacity.take(slots)
        self.capacity[slots] = capacity + self._block_tokens
        self._extensions.append((slots, capacity, blocks))
        if len(self._extensions) == MAX_EXTENSIONS:
            self._write_extensions()

    def _write_extensions(self) -> None:
        """Bring the tables up to date: many extensions at once cost little more than one."""
        slots, capacities, blocks = map(np.concatenate, zip(*self._extensions, strict=True))
        self._extensions.clear()
        columns = (capacities + self.ahead) // self._block_tokens
        self._widen(int(columns.max()) + 1)
        self.tables[slots, columns] = blocks

    def table(self, slot: int) -> Int32Array:
        """Its blocks in order; a view."""
        if self._extensions:
            self._write_extensions()
        return self.tables[slot, : (self.capacity[slot] + self.ahead) // self._block_tokens]

    def note_cause(self, slots: SlotArray | int, cause: Cause) -> None:
        """What the next tokens of these slots wait for."""
        self.cause[slots] = cause
        self.any_cause = True

    def take_causes(self, slots: SlotArray) -> NDArray[np.int8]:
        """What the tokens that are planned now have waited for; what comes after them has not waited yet."""
        if not self.any_cause:
            return NO_CAUSES
        taken = self.cause.take(slots)
        self.cause[slots] = Cause.PIPELINE
        self.any_cause = bool(self.cause[: self.high].any())
        return taken if taken.any() else NO_CAUSES

    def leave(self, slot: int) -> None:
        """Free a slot. No step in flight may have a row of it."""
        self.sequences[slot] = None
        self._unused.append(slot)

    def set_open(self, slot: int, *, value: bool) -> None:
        """Whether the decode in this slot may be planned."""
        self.open[slot] = value
        self._all_open = None
        if value:
            self._plans_to_end = min(self._plans_to_end, self.outputs_left(slot))

    def set_end(self, slot: int, end: int, left: int) -> None:
        """A prefill is planned whole: its output ends at this position, `left` tokens after the plan being made."""
        self.end[slot] = end
        self._plans_to_end = min(self._plans_to_end, left + 1)

    def all_open(self) -> SlotArray:
        """Slots of every decode that may be planned, ascending; not to be written to."""
        if self._all_open is None:
            self._all_open = self.open[: self.high].nonzero()[0]
            self._all_open_ids = self._all_open_tbt_s = self._least_tbt_s = None
            self._all_first = len(self._all_open) > 0 and self._all_open[-1] == len(self._all_open) - 1
        return self._all_open

    def read(self, column: NDArray[Scalar], slots: SlotArray) -> NDArray[Scalar]:
        """A column's values at these slots; perhaps a view, so neither to be written to nor to be kept."""
        return column[: len(slots)] if self._are_first(slots) else column.take(slots)

    def write(self, column: NDArray[Scalar], slots: SlotArray, values: NDArray[Scalar]) -> None:
        """Set a column's values at these slots."""
        if self._are_first(slots):
            column[: len(slots)] = values
        else:
            column[slots] = values

    def _are_first(self, slots: SlotArray) -> bool:
        """Whether these are everybody who may be planned, and the slots 0, 1, 2 and so on: then slices will do."""
        return slots is self._all_open and self._all_first

    def ids_of(self, slots: SlotArray) -> NDArray[np.int64]:
        """Sequence ids; not to be written to."""
        if slots is not self._all_open:
            return self.sequence.take(slots)
        if self._all_open_ids is None:
            self._all_open_ids = self.sequence.take(slots)
        return self._all_open_ids

    def tbt_of(self, slots: SlotArray) -> NDArray[np.float64]:
        """TBT of the classes, seconds; not to be written to."""
        if slots is not self._all_open:
            return self.tbt_s.take(slots)
        if self._all_open_tbt_s is None:
            self._all_open_tbt_s = self.tbt_s.take(slots)
        return self._all_open_tbt_s

    def least_tbt_s(self) -> float:
        """The shortest TBT of those who may be planned; there is one at least."""
        slots = self.all_open()
        if self._least_tbt_s is None:
            self._least_tbt_s = float(self.tbt_of(slots).min())
        return self._least_tbt_s

    def close_at_end(self, slots: SlotArray, positions: NDArray[np.int32]) -> list[int]:
        """Of rows just planned up to these positions, the slots with no output token left; they are closed. Called once
        for each plan: that no decode can be at its end yet is known from the last look, for as many plans.
        """
        self._plans_to_end -= 1
        if self._plans_to_end > 0:
            return []
        at_end: list[int] = slots[positions == self.end.take(slots)].tolist()
        if at_end:
            self.open[at_end] = False
            self._all_open = None
        decodes = self.all_open()
        left = self.end.take(decodes) - self.position.take(decodes)
        self._plans_to_end = int(left.min()) if len(left) else 0
        return at_end

    def outputs_left(self, slot: int) -> int:
        """Output tokens not planned yet, of a sequence past its prefill."""
        return int(self.end[slot]) - int(self.position[slot])

    def _grow(self) -> None:
        size = max(64, 2 * len(self.position))
        for name, column in vars(self).items():
            if isinstance(column, np.ndarray) and not name.startswith("_"):
                grown: NDArray[Any] = np.zeros((size, *column.shape[1:]), column.dtype)
                grown[: len(column)] = column
                setattr(self, name, grown)

    def _widen(self, num_blocks: int) -> None:
        """Make every table hold so many blocks."""
        slots, width = self.tables.shape
        if num_blocks > width:
            wider = np.zeros((slots, max(num_blocks, 2 * width)), np.int32)
            wider[:, :width] = self.tables
            self.tables = wider
