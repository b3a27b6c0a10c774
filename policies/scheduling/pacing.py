"""How long the next step may take, and which decodes may be left out of it.

Owns the arithmetic of slack: what a decode's deadline leaves when a step begins. Does not know stages; `stages.py` asks
how many tokens still fit.
"""

from math import inf

import numpy as np

from policies.scheduling.executor import Executor
from policies.scheduling.state import SlotArray
from policies.scheduling.step_costs import StepShape

GROWTH = 2
"""A step is at most so many times as large as the largest seen: beyond that the fit knows nothing."""

Pace = tuple[float, float]
"""Of one step, (due until, limit), in seconds. A decode whose deadline is not later than the first belongs in this
step: the next one would not meet it. The step is to take at most the second. A plain tuple, as every plan makes one."""


def pace(executor: Executor, starts_s: float) -> Pace:
    """Of the step planned now, which begins at `starts_s`."""
    budget, columns = executor.rules.budget, executor.columns
    slots = columns.all_open()
    limit_s = inf
    if budget is not None and budget.max_step_s is not None:
        limit_s = budget.max_step_s
    elif budget is not None and len(slots):
        slack_s = columns.read(columns.deadline_s, slots) - starts_s
        # Whoever is late already, or has no token yet, cannot be helped by a shorter step; its next gap counts.
        slack_s = np.where(slack_s > 0.0, slack_s, columns.tbt_of(slots))
        limit_s = budget.share * float(slack_s.min())
    return _paced(executor, starts_s, limit_s)


def pace_of_everyone(executor: Executor, starts_s: float) -> Pace:
    """Of a step that plans every decode and nothing else, as if it followed another of that kind: everybody then has
    the time of its class, and there is nothing to compute. There is one decode at least.
    """
    budget = executor.rules.budget
    limit_s = inf
    if budget is not None:
        all_s = budget.max_step_s
        limit_s = budget.share * executor.columns.least_tbt_s() if all_s is None else all_s
    return _paced(executor, starts_s, limit_s)


def _paced(executor: Executor, starts_s: float, limit_s: float) -> Pace:
    rules = executor.rules
    if rules.eager_kv is None:
        return starts_s, limit_s
    if executor.blocks.use >= rules.eager_kv:
        return inf, limit_s
    next_s = usual_s = executor.step_time.estimate_s
    if rules.budget is not None:
        cost = executor.costs.with_prompts
        least_s = cost.fixed_s + cost.token_s * rules.budget.min  # 0 before the first
        next_s = max(next_s, least_s)
    return starts_s + (limit_s if limit_s < inf else usual_s) + next_s, limit_s


def tokens_that_fit(executor: Executor, limit_s: float, num_tokens: int, context_tokens: int) -> int:
    """Prompt tokens that may join a step of so many decode tokens, which read so much context.

    The step comes to a multiple of the budget's tile, because on real devices a part of a tile costs as much as all of
    it; and to the budget's minimum at least, because prompts must go on however urgent the decodes are.
    """
    budget = executor.rules.budget
    if budget is None:
        return executor.rules.token_budget
    cost = executor.costs.with_prompts
    most = executor.rules.token_budget
    if limit_s < inf:
        most = min(most, max(budget.min, GROWTH * cost.most_tokens))
        if cost.most_tokens:
            most = int(max(0.0, min(most, cost.tokens_within(limit_s, context_tokens))))
    return max(most - most % budget.tile, budget.min) - num_tokens


def decodes_that_fit(executor: Executor, limit_s: float, slots: SlotArray, planned: StepShape) -> int:
    """How many of these decodes may join a step of that shape, the first ones first."""
    cost = executor.costs.with_prompts if planned.has_prompts else executor.costs.decodes_only
    if not cost.most_tokens:
        return len(slots)
    context = executor.columns.position.take(slots)
    if cost.seconds(planned.num_tokens + len(slots), planned.context_tokens + int(context.sum())) <= limit_s:
        return len(slots)
    num_tokens = np.arange(planned.num_tokens + 1, planned.num_tokens + len(slots) + 1)
    context_tokens = planned.context_tokens + context.cumsum()
    seconds = cost.fixed_s + cost.token_s * num_tokens + cost.context_s * context_tokens
    return int(seconds.searchsorted(limit_s, side="right"))
