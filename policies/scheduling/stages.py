"""Building one step plan: stages that each offer the remaining token budget to one kind of work.

Owns the meaning of a stage. Decodes are taken as arrays: a stage that fits whole is never sorted, and only when blocks
run short is each decode looked at by itself. Prefills are few and are taken one by one.
"""

from math import inf

import numpy as np
from numpy.typing import NDArray

from policies.commands import BoolArray, Int32Array
from policies.scheduling.causes import Cause
from policies.scheduling.executor import Executor
from policies.scheduling.orders import sort_slots
from policies.scheduling.outlook import Outlook, raise_estimates, spared, survivors
from policies.scheduling.pacing import decodes_that_fit, pace, pace_of_everyone, tokens_that_fit
from policies.scheduling.preemption import choose
from policies.scheduling.prefills import Prefill, candidates
from policies.scheduling.rules import CARRY_OVER_RULE, DecodeRule, PrefillRule
from policies.scheduling.sharing import NO_HIT, Hit
from policies.scheduling.state import Sequence, SlotArray
from policies.scheduling.step_costs import StepShape


class Draft:
    """A plan being built. Row order: as planned, stage by stage.

    Attributes:
        segments: (stage index, slots) of consecutive rows.
        positions: of the rows of the first segment, where its stage has looked them up anyway.
        prefills: the rows that are prompts.
        border_rows: rows of decodes that cross a block border, as arrays; `new_blocks` has their blocks, in row order.
        positions: of the first segment's rows, when known.
        stages: of the rows, where they differ within the only segment.
        copies: (block, its copy) of starts that go on where a shared block is not yet full.
        cached: of `starts`, the tokens that need no computing.
        preempted: whether anybody lost its blocks.
    """

    __slots__ = (
        "_aged_since_s",
        "_barred",
        "_closed",
        "_context_tokens",
        "_due_until_s",
        "_executor",
        "_limit_s",
        "_now",
        "_open",
        "_outlook",
        "_planned_prefills",
        "_rules",
        "_spared",
        "_starts_s",
        "border_rows",
        "cached",
        "copies",
        "left",
        "new_blocks",
        "num_decodes",
        "num_rows",
        "positions",
        "preempted",
        "prefills",
        "segments",
        "stages",
        "starts",
    )

    def __init__(self, executor: Executor, now: float, starts_s: float) -> None:
        self._executor = executor
        self._rules = executor.rules
        self._now = now
        self._aged_since_s = now - self._rules.aging_s
        self._starts_s = starts_s
        self._due_until_s, self._limit_s = now, inf
        self._context_tokens = 0
        self._open: BoolArray | None = None
        self._closed = 0
        self._barred: list[Sequence] = []
        self._outlook: Outlook | None = None
        self._spared: dict[int, None] = {}
        self._planned_prefills: dict[int, Sequence] = {}
        self.left = self._rules.token_budget
        self.num_decodes = 0
        self.num_rows = 0
        self.segments: list[tuple[int, SlotArray]] = []
        self.prefills: list[Prefill] = []
        self.border_rows: list[SlotArray] = []
        self.new_blocks: list[Int32Array] = []
        self.starts: list[int] = []
        self.cached: list[int] = []
        self.copies: list[tuple[int, int]] = []
        self.positions: NDArray[np.int32] | None = None
        self.stages: NDArray[np.int8] | None = None
        self.preempted = False

    def build(self) -> None:
        """Offer the budget to the stages in turn, then let the preempted wait."""
        for sequence in survivors(self._executor):
            self._preempt(sequence)
        if not self._take_everyone():
            self._offer()
            self._note_left_out()
        elif self._rules.future_share is not None:
            self._executor.note_decodes(1.0)
        for sequence in self._barred:
            self._executor.enqueue(sequence)

    def _offer(self) -> None:
        if self._rules.paced:
            self._due_until_s, self._limit_s = pace(self._executor, self._starts_s)
        num_decoding = len(self._executor.columns.all_open())
        if self._executor.may_carry:
            self._take_prefills(CARRY_OVER_RULE)
        for stage in self._rules.stages:
            if self.left == 0:
                break
            if num_decoding < stage.min_decoding:
                continue
            rows_before = self.num_rows
            if isinstance(stage, DecodeRule):
                self._take_decodes(stage)
            else:
                self._take_prefills(stage)
            if stage.exclusive and self.num_rows > rows_before:
                break
        if self._rules.future_share is not None and num_decoding:
            self._executor.note_decodes(self.num_decodes / num_decoding)

    def _note_left_out(self) -> None:
        """Say what the decodes that are not in this plan wait for."""
        slots = self._open_slots()
        if not len(slots):
            return
        columns = self._executor.columns
        not_due = columns.deadline_s.take(slots) > self._due_until_s
        columns.note_cause(slots[not_due], Cause.DEFERRED)
        if self._executor.blocks.num_free == 0 and self.left:
            cause = Cause.KV
        else:
            cause = Cause.SLOTS if self.num_decodes >= self._rules.max_decodes else Cause.BUDGET
        columns.note_cause(slots[~not_due], cause)

    def _take_everyone(self) -> bool:
        """Plan every decode at once where the stages come to that: no prompt can run, budget and blocks suffice. Most
        steps of a busy executor are like this; the arrays are then those of the step before.
        """
        executor, columns = self._executor, self._executor.columns
        slots = columns.all_open()
        count = len(slots)
        if executor.decode_stages is None or not 0 < count <= min(self.left, self._rules.max_decodes):
            return False
        if self._may_prefill():
            return False
        due_until_s = self._now
        if self._rules.paced:
            due_until_s, limit_s = pace_of_everyone(executor, self._starts_s)
            if executor.costs.last_decodes_s > limit_s:
                return False
        positions = columns.read(columns.position, slots).copy()
        at_border = (positions >= columns.read(columns.capacity, slots)).nonzero()[0]
        if len(at_border) > executor.blocks.num_free:
            return False
        if len(at_border):
            self._extend(slots.take(at_border))
            self.border_rows.append(at_border)
        due, others = executor.decode_stages
        if due is not None:
            not_due = columns.read(columns.deadline_s, slots) > due_until_s
            self.stages = not_due.view(np.int8) * (others - due)  # a third of what numpy.where takes
            if due:
                self.stages += due
        self.positions = positions
        self._add_decodes(others, slots)
        return True

    def _may_prefill(self) -> bool:
        """Whether any prompt could be in this plan."""
        executor = self._executor
        return bool(executor.started) or (executor.num_holders < self._rules.max_sequences and bool(executor.waiting))

    # --- decodes --------------------------------------------------------------------------------------------------

    def _take_decodes(self, stage: DecodeRule) -> None:
        columns = self._executor.columns
        slots = self._open_slots()
        if stage.due and len(slots):
            is_open = columns.open[: columns.high] if self._open is None else self._open
            slots = (columns.deadline_s[: len(is_open)] <= self._due_until_s).nonzero()[0]
            slots = slots[is_open.take(slots)]
        room = min(self.left, self._rules.max_decodes - self.num_decodes)
        if not len(slots) or room <= 0:
            return
        if self._limit_s < inf and not stage.due:
            slots = self._in_time(stage, slots)
        chosen = slots
        if len(slots) > room:
            slots = sort_slots(columns, slots, stage.order, self._aged_since_s)
            chosen = slots[:room]
        positions = columns.position.take(chosen)
        at_border = (positions >= columns.capacity.take(chosen)).nonzero()[0]
        if len(at_border) > self._executor.blocks.num_free:
            self._take_decodes_one_by_one(stage, sort_slots(columns, slots, stage.order, self._aged_since_s))
            return
        if len(at_border):
            self._extend(chosen.take(at_border))
            self.border_rows.append(at_border + self.num_rows if self.num_rows else at_border)
        if not self.segments:
            self.positions = positions
        self._add_decodes(stage.index, chosen)

    def _in_time(self, stage: DecodeRule, slots: SlotArray) -> SlotArray:
        """Those of the decodes for which the step is not yet too long; one if there is nothing else to run."""
        shape = StepShape(self._rules.token_budget - self.left, self._context_tokens, bool(self.prefills))
        ordered = sort_slots(self._executor.columns, slots, stage.order, self._aged_since_s)
        count = decodes_that_fit(self._executor, self._limit_s, ordered, shape)
        if self.prefills:  # a few decodes more would begin another tile, which costs as much as a full one
            count = min(count, tokens_that_fit(self._executor, self._limit_s, shape.num_tokens, shape.context_tokens))
        return ordered[: max(count, 0 if self.num_rows else 1)]

    def _open_slots(self) -> SlotArray:
        if self._open is not None:
            return self._open.nonzero()[0]
        slots = self._executor.columns.all_open()
        return slots[:0] if self._closed == len(slots) else slots

    def _mask(self) -> BoolArray:
        """Which slots may still be planned in this step, writable."""
        if self._open is None:
            columns = self._executor.columns
            self._open = columns.open[: columns.high].copy()
        return self._open

    def _extend(self, slots: SlotArray) -> None:
        """One more block for each of these decodes."""
        taken = self._executor.blocks.take(len(slots))
        self._executor.columns.extend(slots, taken)
        self.new_blocks.append(taken)

    def _add_decodes(self, stage_index: int, chosen: SlotArray) -> None:
        count = len(chosen)
        if self._open is None and count == len(self._executor.columns.all_open()):
            self._closed = count  # everybody at once: no mask is needed
        else:
            self._mask()[chosen] = False
        self.segments.append((stage_index, chosen))
        self.num_rows += count
        self.num_decodes += count
        self.left -= count
        if self._limit_s < inf:
            self._context_tokens += int(self._executor.columns.position.take(chosen).sum())

    def _take_decodes_one_by_one(self, stage: DecodeRule, ordered: SlotArray) -> None:
        """The definition itself, for when blocks run short: each decode may cost another sequence its blocks. Those
        who are spared come first, or they would find nobody else left.
        """
        columns = self._executor.columns
        mask = self._mask()
        raise_estimates(self._executor)
        self._spared = spared(self._executor)
        if self._spared:
            first = np.isin(ordered, list(self._spared))
            ordered = np.concatenate((ordered[first], ordered[~first]))
        while True:
            chosen = ordered[: min(self.left, self._rules.max_decodes - self.num_decodes)]
            at_border = columns.position.take(chosen) >= columns.capacity.take(chosen)
            num_covered = int(np.searchsorted(at_border.cumsum(), self._executor.blocks.num_free, side="right"))
            if num_covered:
                covered, rows = chosen[:num_covered], at_border[:num_covered].nonzero()[0]
                if len(rows):
                    self._extend(covered.take(rows))
                    self.border_rows.append(rows + self.num_rows)
                self._add_decodes(stage.index, covered)
            if num_covered == len(chosen):
                return
            sequence = columns.sequences[chosen[num_covered]]
            gone = sequence is None or not self._make_room(sequence)
            ordered = ordered[num_covered + gone :]
            ordered = ordered[mask[ordered]]

    def _make_room(self, sequence: Sequence) -> bool:
        """Preempt until a block is free; False if the sequence itself had to go."""
        executor = self._executor
        while executor.blocks.num_free == 0:
            victim = choose(self._rules.victims, self._candidates_for_eviction(), sequence, self._spared)
            if victim.slot is not None:
                self._mask()[victim.slot] = False
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, victim: Sequence) -> None:
        self.preempted = True
        if self._executor.preempt(victim, self._now):
            self._barred.append(victim)

    def _candidates_for_eviction(self) -> list[Sequence]:
        """Holders with tokens left to plan that are not in this plan."""
        executor = self._executor
        planned = {int(slot) for _, slots in self.segments for slot in slots}
        return [
            s
            for s in executor.holders()
            if s.slot not in planned and (s.id in executor.started or executor.columns.outputs_left(s.slot or 0) > 0)
        ]

    # --- prefills -------------------------------------------------------------------------------------------------

    def _take_prefills(self, stage: PrefillRule) -> None:
        if not self._may_prefill():
            return
        executor = self._executor
        planned = self._rules.token_budget - self.left
        withheld = max(0, self.left - max(0, tokens_that_fit(executor, self._limit_s, planned, self._context_tokens)))
        self.left -= withheld
        taken = 0
        slots: list[int] = []
        for sequence in candidates(executor, stage, self._planned_prefills, self._aged_since_s):
            if self.left == 0 or taken == stage.max_sequences:
                break
            starts = sequence.slot is None
            hit = executor.look_up(sequence) if starts else NO_HIT
            wanted = executor.sharing.to_wait_for(sequence, hit) if starts else None
            if wanted is not None and executor.hold_back(sequence, wanted):
                continue
            num_tokens = self._piece(stage, sequence.prompt_left - hit.num_tokens)
            if num_tokens == 0 or wanted is not None or (starts and not self._may_start(sequence, hit)):
                if starts and stage.merge:
                    continue  # started ones go on: they hold the blocks and the places that it waits for
                break
            num_new_blocks = self._start(sequence, hit, stage) if starts else 0
            self.prefills.append(Prefill(self.num_rows + taken, sequence, num_tokens, num_new_blocks))
            self._planned_prefills[sequence.id] = sequence
            slots.append(sequence.slot if sequence.slot is not None else 0)
            self.left -= num_tokens
            taken += 1
        self.left += withheld
        if slots:
            self.segments.append((stage.index, np.array(slots)))
            self.num_rows += taken

    def _start(self, sequence: Sequence, hit: Hit, stage: PrefillRule) -> int:
        """Blocks for a sequence; returns how many its table has."""
        if self._outlook is not None:
            self._outlook.add(sequence, hit)
        table = self._executor.start(sequence, hit, self._now, stage.index)
        if hit.copied is not None:
            self.copies.append((hit.copied, int(table[len(hit.blocks)])))
        self.new_blocks.append(table)
        self.starts.append(sequence.id)
        self.cached.append(hit.num_tokens)
        return len(table)

    def _piece(self, stage: PrefillRule, prompt_left: int) -> int:
        """Tokens of a prompt that the stage may plan now; 0: none."""
        if prompt_left <= self.left:
            return prompt_left
        if not stage.chunked:
            return 0
        return self.left - self.left % stage.chunk if stage.chunk else self.left

    def _may_start(self, sequence: Sequence, hit: Hit) -> bool:
        executor = self._executor
        if executor.num_holders >= self._rules.max_sequences:
            return False
        free = executor.blocks.num_free - executor.blocks_to_take(sequence, hit)
        kept = executor.watermark_blocks
        if sequence.tokens_to_prefill > self._rules.short_tokens and not sequence.resumed:
            kept += executor.headroom_blocks
        if executor.num_holders and self._rules.future_share is not None:
            return free >= kept and self._look_ahead().admits(sequence, hit)
        # Alone it may use the watermark: a policy that raised it must not leave a released sequence waiting forever.
        return free >= kept or (free >= 0 and executor.num_holders == 0)

    def _look_ahead(self) -> Outlook:
        if self._outlook is None:
            self._outlook = Outlook(self._executor, self._rules.future_share or 0.0)
        return self._outlook
