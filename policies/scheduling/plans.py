"""From a finished draft to the command and the record of the step.

Owns the arrays of a plan. What most plans need alike (rows of one token, rows that sample) is shared, not made anew.
"""

import numpy as np

from policies.commands import NO_BLOCKS, StepPlan
from policies.lifecycle import Happening
from policies.scheduling import templates
from policies.scheduling.executor import Executor
from policies.scheduling.prefills import Prefill
from policies.scheduling.stages import Draft
from policies.scheduling.state import Sequence, Step
from policies.scheduling.step_costs import StepShape

DECODES_SAMPLED = 16
"""One step of so many that hold decodes alone is learned from: they are many, and much alike."""


def finish_plan(executor: Executor, draft: Draft, now: float) -> StepPlan:
    """Make the draft's rows a step: progress advances, the step is in flight, the plan goes to the executor.

    Args:
        executor: where it runs.
        draft: with at least one row.
        now: core time, seconds.
    """
    columns = executor.columns
    num_rows = draft.num_rows
    if len(draft.segments) == 1:
        index, slots = draft.segments[0]
        stages = draft.stages if draft.stages is not None else templates.stages(index, num_rows)
        positions = draft.positions if draft.positions is not None else columns.position.take(slots)
    else:
        slots = np.concatenate([slots for _, slots in draft.segments])
        positions = columns.position.take(slots)
        stages = np.empty(num_rows, np.int8)
        row = 0
        for index, segment in draft.segments:
            stages[row : row + len(segment)] = index
            row += len(segment)
    num_tokens = templates.ones(num_rows)
    samples = templates.trues(num_rows)
    num_new_blocks = templates.zeros(num_rows)
    new_blocks = NO_BLOCKS
    if draft.new_blocks:
        num_new_blocks = num_new_blocks.copy()
        new_blocks = draft.new_blocks[0] if len(draft.new_blocks) == 1 else np.concatenate(draft.new_blocks)
        for rows in draft.border_rows:
            num_new_blocks[rows] = 1
    arms = slots
    num_samples = num_rows
    filled: list[tuple[Sequence, int, int]] = []
    if draft.prefills:
        num_tokens, samples, arming = num_tokens.copy(), samples.copy(), samples.copy()
        for prefill in draft.prefills:
            num_tokens[prefill.row] = prefill.num_tokens
            if prefill.sequence.prefix is not None:
                first = int(positions[prefill.row])
                filled.append((prefill.sequence, first, first + prefill.num_tokens))
            if prefill.num_new_blocks:
                num_new_blocks[prefill.row] = prefill.num_new_blocks
            arming[prefill.row] = _advance_prefill(executor, prefill, now)
            samples[prefill.row] = executor.samples_first and prefill.final
        arms = slots[arming]
        num_samples = int(np.count_nonzero(samples))
    after = positions + num_tokens
    columns.write(columns.position, slots, after)
    executor.num_steps += 1
    step = Step(executor.num_steps, now, slots=slots, samples=samples, arms=arms, num_samples=num_samples)
    step.tbt_s = columns.tbt_of(arms)
    if draft.prefills and executor.rules.eager_kv is not None and not executor.samples_first:
        # Their readers wait for the first token, and no gap has begun that would give it time.
        without_token = [slots[p.row] for p in draft.prefills if p.final and not p.sequence.kept_tokens]
        step.tbt_s = np.where(np.isin(arms, without_token), 0.0, step.tbt_s)
    step.num_tokens = executor.rules.token_budget - draft.left
    step.budget = executor.rules.token_budget
    step.filled = filled
    if executor.rules.paced:
        if draft.prefills or step.number % DECODES_SAMPLED == 0:
            read = int(positions.sum()) - sum(int(positions[prefill.row]) for prefill in draft.prefills)
            step.shape = StepShape(step.num_tokens, read, bool(draft.prefills))
        step.expected_s = executor.costs.expected_s(step.shape)
    sequences = columns.ids_of(slots)
    step.ending = columns.close_at_end(slots, after)
    for slot in step.ending:
        sequence = columns.sequences[slot]
        if sequence is not None:
            sequence.life.pass_(Happening.LAST_PLANNED, now)
    executor.steps.append(step)
    released, executor.forget = executor.forget, []
    copied = copies = NO_BLOCKS
    if draft.copies:
        copied, copies = np.array(draft.copies, np.int32).T
    return StepPlan(
        sequences=sequences,
        positions=positions,
        num_tokens=num_tokens,
        samples=samples,
        stages=stages,
        num_new_blocks=num_new_blocks,
        new_blocks=new_blocks,
        starts=draft.starts,
        released=released,
        cached=draft.cached,
        copied=copied,
        copies=copies,
        causes=columns.take_causes(slots),
    )


def _advance_prefill(executor: Executor, prefill: Prefill, now: float) -> bool:
    """Account for a planned prompt piece; True when it leaves nothing of the prompt."""
    sequence = prefill.sequence
    sequence.prompt_left -= prefill.num_tokens
    if not prefill.final or sequence.slot is None:
        return False
    del executor.started[sequence.id]
    sequence.life.pass_(Happening.PREFILLED, now)
    outputs = sequence.kept_tokens + executor.samples_first
    end = sequence.tokens_to_prefill + sequence.max_output_tokens - outputs
    executor.columns.set_end(sequence.slot, end, left=end - sequence.tokens_to_prefill)
    if not sequence.stalled and end > sequence.tokens_to_prefill:
        executor.columns.set_open(sequence.slot, value=True)
    return True
