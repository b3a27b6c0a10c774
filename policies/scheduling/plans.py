"""From a finished draft to the command and the record of the step.

Owns the arrays of a plan. What every plan needs alike (rows of one token, rows that sample) is copied from templates.
"""

import numpy as np

from policies.commands import StepPlan
from policies.lifecycle import Happening
from policies.scheduling.executor import Executor
from policies.scheduling.stages import Draft, advance_prefill
from policies.scheduling.state import Step


def finish_plan(executor: Executor, draft: Draft, now: float) -> StepPlan:
    """Make the draft's rows a step: progress advances, the step is in flight, the plan goes to the executor.

    Args:
        executor: where it runs.
        draft: with at least one row.
        now: core time, seconds.
    """
    columns = executor.columns
    slots = draft.segments[0][1] if len(draft.segments) == 1 else np.concatenate([s for _, s in draft.segments])
    num_rows = draft.num_rows
    positions = columns.position.take(slots)
    num_tokens = np.ones(num_rows, np.int32)
    samples = np.ones(num_rows, np.bool_)
    stages = np.empty(num_rows, np.int8)
    num_new_blocks = np.zeros(num_rows, np.int32)
    row = 0
    for index, segment in draft.segments:
        stages[row : row + len(segment)] = index
        row += len(segment)
    for rows in draft.border_rows:
        num_new_blocks[rows] = 1
    arms = slots
    num_samples = num_rows
    if draft.prefills:
        arming = samples.copy()
        for prefill in draft.prefills:
            num_tokens[prefill.row] = prefill.num_tokens
            num_new_blocks[prefill.row] = prefill.num_new_blocks
            arming[prefill.row] = advance_prefill(executor, prefill, now)
            samples[prefill.row] = executor.samples_first and prefill.final
        arms = slots[arming]
        num_samples = int(np.count_nonzero(samples))
    after = positions + num_tokens
    columns.position[slots] = after
    executor.num_steps += 1
    step = Step(executor.num_steps, now, slots=slots, samples=samples, arms=arms, num_samples=num_samples)
    step.tbt_s = columns.tbt_s.take(arms)
    step.num_tokens = executor.rules.token_budget - draft.left
    step.budget = executor.rules.token_budget
    at_end = slots[after == columns.end.take(slots)]
    if len(at_end):
        step.ending = at_end.tolist()
        columns.close(step.ending)
        for slot in step.ending:
            sequence = columns.sequences[slot]
            if sequence is not None:
                sequence.life.pass_(Happening.LAST_PLANNED, now)
    executor.steps.append(step)
    plan = StepPlan(
        sequences=columns.sequence.take(slots),
        positions=positions,
        num_tokens=num_tokens,
        samples=samples,
        stages=stages,
        num_new_blocks=num_new_blocks,
        new_blocks=np.array(draft.new_blocks, np.int32),
        starts=draft.starts,
        released=executor.forget,
    )
    executor.forget = []
    return plan
