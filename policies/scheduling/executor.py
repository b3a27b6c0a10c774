"""One executor as the scheduler sees it: its pool, its sequences and its steps in flight.

Owns who holds which blocks and slots there, and every move between waiting and holding. Does not know stages: plan.py
decides, this carries out.
"""

from collections.abc import Iterable
from math import floor

import numpy as np

from policies.commands import Int32Array
from policies.events import ExecutorJoined
from policies.lifecycle import HOLDS_BLOCKS, Happening, State
from policies.scheduling.causes import Cause
from policies.scheduling.columns import Columns
from policies.scheduling.deadlines import base_s
from policies.scheduling.kv_blocks import KvBlocks
from policies.scheduling.orders import Waiting
from policies.scheduling.rules import UNLIMITED, SchedulingRules
from policies.scheduling.sharing import NO_HIT, Hit, Sharing
from policies.scheduling.state import Sequence, Step
from policies.scheduling.step_costs import StepCosts
from policies.scheduling.step_time import StepTime

SHARE_WEIGHT = 0.05
"""Of the newest plan, in `decode_share`."""


class Executor:
    """State of one executor.

    Attributes:
        samples_first: the last piece of a prompt samples a token (else the first decode makes token 1).
        started: unfinished prefills by sequence id, in order of admission.
        num_holders: sequences with blocks.
        may_carry: whether there can be a prefill that no stage of the policy could finish.
        steps: in flight, oldest first.
        forget: sequences that the executor still has state of and must drop.
        committed_tokens: KV tokens held or promised to the sequences routed here.
        decode_share: of the decodes that could be planned, those that lately were.
    """

    def __init__(self, joined: ExecutorJoined, rules: SchedulingRules, *, samples_first: bool) -> None:
        self.id = joined.executor
        self.samples_first = samples_first
        self.max_sequence_tokens = joined.max_sequence_tokens
        self.max_steps_in_flight = joined.max_steps_in_flight
        self.step_limits = joined.step_limits
        self.blocks = KvBlocks(joined.num_blocks, joined.block_tokens)
        self.sharing = Sharing(self.blocks, copies=joined.copies_blocks)
        self.columns = Columns(self.blocks.block_tokens, samples_first=samples_first)
        self.waiting = Waiting()
        self.started: dict[int, Sequence] = {}
        self.routed: dict[int, Sequence] = {}
        self.steps: list[Step] = []
        self.forget: list[int] = []
        self.num_holders = 0
        self.num_steps = 0
        self.num_preemptions = 0
        self.num_freed_tokens = 0
        self.num_recomputed_tokens = 0
        self.decode_share = 1.0
        self.last_ended_s = 0.0
        self.step_time = StepTime(rules.step_time_weight)
        self.costs = StepCosts()
        self._admissions = 0
        self.promised_tokens = 0
        self.apply(rules)

    @property
    def committed_tokens(self) -> int:
        """KV tokens held, and those the waiting sequences will take at their start."""
        held = self.blocks.num_blocks - self.blocks.num_free
        return held * self.blocks.block_tokens + self.promised_tokens

    def apply(self, rules: SchedulingRules) -> None:
        """Follow a new policy: everything is carried over, the waiting are ordered anew."""
        self.rules = rules
        self.watermark_blocks = rules.watermark_blocks(self.blocks.num_blocks)
        self.headroom_blocks = floor(rules.headroom * self.blocks.num_blocks)
        self._longest_waiting = rules.longest_piece(started=False)
        self._longest_started = rules.longest_piece(started=True)
        self.decode_stages = rules.decode_stages()
        self.decodes_of_stage = rules.decodes_of_stage()
        self.may_carry = min(self._longest_started, self._longest_waiting) < UNLIMITED
        self.step_time.reweigh(rules.step_time_weight)
        self.waiting.rebuild(rules.waiting_lines(), rules.requeue, self.is_carried)
        self.columns.reserve_ahead(rules.ahead_tokens)
        self.columns.refinement = self._refinement = None if rules.lengths is None else rules.lengths.refinement
        for sequence in self.routed.values():
            if sequence.slot is not None:
                self.columns.priority[sequence.slot] = sequence.priority
                self.columns.estimate[sequence.slot] = sequence.estimate

    def is_carried(self, sequence: Sequence) -> bool:
        """Whether no stage of the policy could finish this prefill, so that the carry-over stage takes it."""
        longest = self._longest_started if sequence.life.state is State.PREFILL else self._longest_waiting
        return sequence.prompt_left > longest

    def obstacle(self, sequence: Sequence) -> str | None:
        """Why this executor could never run a sequence to its end, as a sentence; None if it could."""
        asked = f"{sequence.prompt_tokens} prompt + {sequence.max_output_tokens} output tokens"
        if sequence.longest > self.max_sequence_tokens:
            return (
                f"{asked} are longer than the {self.max_sequence_tokens} tokens the model allows; "
                "shorten the prompt or lower max_tokens"
            )
        usable = self.blocks.num_blocks - self.watermark_blocks
        if self.blocks.blocks_of(sequence.longest) > usable:
            return (
                f"{asked} need more KV memory than one executor has ({max(usable, 0) * self.blocks.block_tokens} "
                "tokens); shorten the prompt or lower max_tokens"
            )
        if not sequence.resumed and self._longest_waiting < sequence.prompt_tokens:
            return (
                f"a prompt of {sequence.prompt_tokens} tokens does not fit a step of {self._longest_waiting} tokens, "
                "and the policy does not cut prompts; shorten the prompt"
            )
        return None

    # --- between waiting and holding ------------------------------------------------------------------------------

    def enqueue(self, sequence: Sequence) -> None:
        """Let a sequence wait here, unless its gateway is stalled."""
        sequence.executor = self.id
        sequence.prompt_left = sequence.tokens_to_prefill
        self.routed[sequence.id] = sequence
        self.promised_tokens += sequence.tokens_to_prefill
        if not sequence.stalled:
            self.waiting.add(sequence, carried=self.is_carried(sequence))

    def blocks_to_start(self, sequence: Sequence) -> int:
        """Blocks that a sequence takes at its start."""
        tokens = self.rules.tokens_reserved(sequence) + self.rules.ahead_tokens
        if sequence.resumed and not self.samples_first and not self.rules.admit_max_length:
            # Its prefill makes no token: without room for the first decode, several such sequences could preempt
            # themselves in turn forever.
            tokens += 1
        return self.blocks.blocks_of(tokens)

    def look_up(self, sequence: Sequence) -> Hit:
        """What of a waiting sequence's tokens is in the pool, under the policy in force."""
        prefix = sequence.prefix
        if prefix is None:
            return NO_HIT
        fits = self.blocks.block_tokens % prefix.key_tokens == 0
        prefix.root = self.rules.namespace(prefix.owner) if fits else None
        return self.sharing.look_up(sequence)

    def hold_back(self, sequence: Sequence, key: bytes) -> bool:
        """Let a waiting sequence wait for a prefix that another is computing, and those behind it pass. False: as many
        do so already as could ever run; that bounds what is looked at for one plan.
        """
        if self.sharing.num_awaiting >= self.rules.max_sequences:
            return False
        self.waiting.remove(sequence)
        self.sharing.wait(sequence, key)
        return True

    def blocks_to_take(self, sequence: Sequence, hit: Hit) -> int:
        """Free blocks fewer once a sequence has started."""
        return self.blocks_to_start(sequence) - len(hit.blocks) + self.blocks.num_idle(hit.blocks)

    def start(self, sequence: Sequence, hit: Hit, now: float, stage: int) -> Int32Array:
        """Give a waiting sequence a slot and its first blocks, those of the hit before new ones; returns its table. The
        caller has checked that they are free.
        """
        self.waiting.remove(sequence)
        self.promised_tokens -= sequence.tokens_to_prefill
        if hit.copied is not None:
            self.blocks.touch(hit.copied)
        self.blocks.share(hit.blocks)
        blocks = self.blocks.take(self.blocks_to_start(sequence) - len(hit.blocks))
        if hit.blocks:
            blocks = np.concatenate((np.array(hit.blocks, np.int32), blocks))
        self._admissions += 1
        sequence.admitted = self._admissions
        sequence.resumed = True
        if self.rules.guard is not None and now - sequence.arrived_s >= self.rules.aging_s:
            sequence.protected = True
        sequence.prompt_left -= hit.num_tokens
        sequence.life.pass_(Happening.STARTED, now, stage)
        if sequence.num_preemptions:
            self.num_recomputed_tokens += sequence.prompt_left
        self.columns.enter(sequence, blocks, hit.num_tokens, len(hit.blocks))
        self.started[sequence.id] = sequence
        self.num_holders += 1
        if sequence.prefix is not None:
            self.sharing.started(sequence, hit)
        return blocks

    def blocks_of(self, sequence: Sequence) -> Int32Array:
        """The block table of a sequence that holds a slot; a view."""
        return self.columns.table(_slot_of(sequence))

    def preempt(self, sequence: Sequence, now: float) -> bool:
        """Take a sequence's blocks; its tokens are kept. Returns True if it may wait at once, False if tokens of it are
        in flight: then it waits when they have returned.
        """
        slot = _slot_of(sequence)
        if sequence.life.state is State.DECODE:
            sequence.kept_tokens = sequence.max_output_tokens - self.columns.outputs_left(slot)
        self.num_preemptions += 1
        self.num_freed_tokens += int(self.columns.position[slot])
        self._yield_blocks(sequence, slot)
        self._learn(sequence)
        last = self._last_step_with(slot)
        if last is None:
            sequence.life.pass_(Happening.PREEMPTED, now)
            self.columns.leave(slot)
            sequence.slot = None
            self._forget_output(sequence)
            return True
        sequence.life.pass_(Happening.PREEMPTED_IN_FLIGHT, now)
        last.returning.append(sequence)
        return False

    def _learn(self, sequence: Sequence) -> None:
        """A sequence is preempted: what it has produced says how long it is at least, and it may be protected."""
        sequence.num_preemptions += 1
        guard, predicted = self.rules.guard, sequence.predicted
        least = 0 if self._refinement is None else self._refinement.least(sequence.kept_tokens)
        if guard is not None and sequence.num_preemptions >= guard.max_preemptions:
            sequence.protected = True
            if predicted is not None:
                least = max(least, predicted.upper)  # what is reserved for it now will do
        sequence.estimate = min(max(sequence.estimate, least), sequence.max_output_tokens)

    def _forget_output(self, sequence: Sequence) -> None:
        if self.rules.restarts:
            sequence.kept_tokens = 0

    def remove(self, sequence: Sequence, happening: Happening, now: float, reason: str) -> None:
        """A sequence is over: nothing of it stays here, rows in flight reach nobody."""
        state = sequence.life.state
        slot = sequence.slot
        sequence.life.pass_(happening, now, reason)
        self.sharing.leave(sequence)
        del self.routed[sequence.id]
        if slot is None:
            self.promised_tokens -= sequence.tokens_to_prefill
            if sequence.ticket:
                self.waiting.remove(sequence)
            return
        for step in self.steps:
            step.dropped.append(slot)
        if state is State.RETURNING:
            return
        self._yield_blocks(sequence, slot)
        last = self._last_step_with(slot)
        if last is None:
            self.columns.leave(slot)
        else:
            last.closing.append(slot)

    def produced(self, sequence: Sequence) -> int:
        """Output tokens that have returned: those planned less those in flight."""
        slot = sequence.slot
        if slot is None:
            return sequence.kept_tokens
        return self.planned_outputs(sequence) - sum(step.samples_slot(slot) for step in self.steps)

    def planned_outputs(self, sequence: Sequence) -> int:
        """Output tokens that have returned or are in flight."""
        if sequence.slot is None or sequence.life.state not in (State.DECODE, State.ENDING):
            return sequence.kept_tokens
        return sequence.max_output_tokens - self.columns.outputs_left(sequence.slot)

    def set_stalled(self, sequence: Sequence, *, stalled: bool) -> None:
        """Leave a sequence out of plans, or let it in again."""
        sequence.stalled = stalled
        state = sequence.life.state
        if state is State.DECODE:
            self.columns.set_open(_slot_of(sequence), value=not stalled)
            self.columns.note_cause(_slot_of(sequence), Cause.BACKPRESSURE)
        elif state is State.WAITING and stalled:
            self.sharing.leave(sequence)
            if sequence.ticket:
                self.waiting.remove(sequence)
        elif state is State.PREFILL and stalled:
            self._wake(self.sharing.withdraw(sequence))
        elif state is State.WAITING and not stalled and not sequence.ticket:
            self.waiting.add(sequence, carried=self.is_carried(sequence))

    # --- steps ----------------------------------------------------------------------------------------------------

    def publish(self, step: Step, keys: list[tuple[int, bytes]]) -> None:
        """Let others find the prompts that a step computed, now that it has ended. Of output only the names are noted
        (`keys`, as in `policies.events.StepEnded`): nobody asks for it before its sequence has ended.
        """
        routed = self.routed
        for sequence_id, new_keys in keys:
            sequence = routed.get(sequence_id)
            if sequence is not None and (prefix := sequence.prefix) is not None:
                prefix.extend(new_keys)
        for sequence, first, last in step.filled:
            # Whoever lost its blocks since the step was planned cannot share them.
            if sequence.slot is not None and sequence.life.state in HOLDS_BLOCKS:
                self._wake(self.sharing.publish(sequence, self.columns.table(sequence.slot), first, last))

    def settle(self, step: Step, now: float) -> None:
        """Free what waited for this step's return; it is out of `steps`."""
        for slot in step.closing:
            self.columns.leave(slot)
        for sequence in step.returning:
            self.columns.leave(_slot_of(sequence))
            sequence.slot = None
            if sequence.life.state is State.RETURNING:
                sequence.life.pass_(Happening.RETURNED, now)
                self._forget_output(sequence)
                self.enqueue(sequence)

    def note_decodes(self, share: float) -> None:
        """Of the decodes that could be planned, so many just were."""
        self.decode_share += SHARE_WEIGHT * (share - self.decode_share)

    def arm(self, step: Step, ended_at_s: float) -> None:
        """Set the deadlines that count from a step's end."""
        base = base_s(ended_at_s, self.rules.offsets.theta(self.blocks.use), self.step_time.estimate_s)
        self.columns.write(self.columns.deadline_s, step.arms, step.tbt_s + base)

    def arm_ahead(self, now: float) -> float:
        """Set provisional deadlines from the predicted ends of the steps in flight; their results correct them.
        Returns when the next step is expected to begin.
        """
        ends = self.last_ended_s
        for step in self.steps:
            takes_s = self.step_time.estimate_s if step.expected_s is None else step.expected_s
            ends = max(now, max(ends, step.planned_at_s) + takes_s)
            self.arm(step, ends)
        return max(now, ends)

    # --- within ---------------------------------------------------------------------------------------------------

    def _yield_blocks(self, sequence: Sequence, slot: int) -> None:
        table = self.columns.table(slot)
        if sequence.prefix is not None:
            prefilled = int(self.columns.prompt_tokens[slot])
            self._wake(self.sharing.publish(sequence, table, prefilled, sequence.prefix.num_tokens))
            self._wake(self.sharing.withdraw(sequence))
        self.blocks.give_back(table)
        sequence.admitted = 0
        self.num_holders -= 1
        self.started.pop(sequence.id, None)
        self.columns.set_open(slot, value=False)
        self.forget.append(sequence.id)

    def _wake(self, sequences: Iterable[Sequence]) -> None:
        """These waited for a prefix, and need to no longer."""
        for sequence in sequences:
            self.waiting.add(sequence, carried=self.is_carried(sequence))

    def _last_step_with(self, slot: int) -> Step | None:
        for step in reversed(self.steps):
            if step.row_of(slot) is not None:
                return step
        return None

    def holders(self) -> list[Sequence]:
        """Sequences with blocks, in slot order."""
        return [s for s in self.columns.sequences if s is not None and s.life.state in HOLDS_BLOCKS]


def _slot_of(sequence: Sequence) -> int:
    if sequence.slot is None:
        raise RuntimeError(f"sequence {sequence.id} has no slot: {sequence.life.story}")
    return sequence.slot
