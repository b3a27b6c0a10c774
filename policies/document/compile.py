"""From a policy document to the objects that decide: one row for each kind.

Owns the mapping from names in the document to working code. Compiling a valid document cannot fail.
"""

from policies.admission.classify import Classifier
from policies.admission.cost import cost_of
from policies.admission.drr import DeficitRoundRobin
from policies.admission.kinds import LeastCounter, LeastServed, Oldest
from policies.admission.limits.items import Algorithm
from policies.admission.limits.rules import LimitRule
from policies.admission.order import Order
from policies.admission.pace import Pace
from policies.admission.predictors import predictor
from policies.admission.reserve import RESERVES
from policies.admission.rules import AdmissionRules
from policies.admission.window import OPEN_TOKENS
from policies.document.fairness import Fairness, Pools
from policies.document.limit_rules import AT_ONCE, size_of
from policies.document.limits import Limit
from policies.document.memory import Prediction, Preemption
from policies.document.memory_rules import goes_by_lengths
from policies.document.rules import sources_of
from policies.document.schema import (
    Admission,
    Deadlines,
    DecodeStage,
    Ewma,
    OffsetSteps,
    Policy,
    PrefillStage,
    Stage,
    StageCondition,
    StandingQueue,
    StepBudget,
)
from policies.scheduling.deadlines import OffsetRule
from policies.scheduling.lengths.lengths import LengthRule
from policies.scheduling.lengths.survival import refinement
from policies.scheduling.orders import REQUEUES
from policies.scheduling.preemption import VICTIMS
from policies.scheduling.prefixes import NAMESPACES
from policies.scheduling.routing import route
from policies.scheduling.rules import UNLIMITED, BudgetRule, DecodeRule, Guard, PrefillRule, SchedulingRules


def compile_admission(policy: Policy) -> AdmissionRules:
    """The sections `classes`, `classify`, `admission`, `limits`, `fairness` and `queue`, and the watermark of `kv`."""
    fairness = policy.fairness
    return AdmissionRules(
        name=policy.name,
        classes=policy.classes,
        ttft_s={slo.name: slo.ttft_s for slo in policy.classes},
        classifier=Classifier(policy.classes, policy.classify),
        fairness=fairness,
        cost=cost_of(fairness.cost),
        order=_order(fairness),
        predictor=predictor(fairness.predictor),
        reserve=RESERVES[fairness.reserve],
        prediction=policy.prediction if policy.prediction.kind == "conformal" else Prediction(),
        pace=Pace(fairness.admit_every_steps or 0, fairness.admit_prompt_tokens),
        queue=policy.queue,
        max_requests=fairness.max_requests,
        declared_window_tokens=_window_tokens(fairness),
        window_pools=fairness.window_tokens.pools if isinstance(fairness.window_tokens, Pools) else 1.0,
        narrows_window=fairness.window_tokens == "auto" and fairness.kind != "fcfs",
        watermark=policy.kv.watermark,
        late_after_s=_late_after_s(policy.admission),
        starts_shortest_first=_starts_shortest_first(policy),
        limits=tuple(_limit(limit) for limit in policy.limits),
    )


def _late_after_s(admission: Admission) -> float | None:
    if isinstance(admission.refuse_when_late, StandingQueue):
        return admission.refuse_when_late.after_s
    return 0.0 if admission.refuse_when_late else None


def _starts_shortest_first(policy: Policy) -> bool:
    """Whether the first stage for prompts that have not begun takes the shortest."""
    prefills = (stage.prefill for stage in policy.batching.stages if stage.prefill is not None)
    first = next((stage for stage in prefills if "waiting" in sources_of(stage)), None)
    return first is not None and first.order[:1] in (("prompt_tokens",), ("remaining_prompt_tokens",))


def compile_scheduling(policy: Policy) -> SchedulingRules:
    """The sections that say what runs in a step and in which blocks, and the classes' deadlines."""
    batching, deadlines = policy.batching, policy.deadlines
    budget = _budget(batching.token_budget)
    eager_kv = deadlines.eager_kv if deadlines.slack == "exact" else None
    return SchedulingRules(
        stages=tuple(_stage(index, stage) for index, stage in enumerate(batching.stages)),
        token_budget=_most_tokens(batching.token_budget),
        budget=budget,
        max_sequences=batching.max_sequences,
        max_decodes=batching.max_decodes,
        aging_s=batching.aging_s,
        offsets=_offsets(deadlines),
        eager_kv=eager_kv,
        paced=budget is not None or eager_kv is not None,
        step_time_weight=deadlines.step_time.ewma if isinstance(deadlines.step_time, Ewma) else None,
        admit_max_length=policy.kv.admit == "max_length",
        future_share=1.0 - policy.kv.reserve if policy.kv.admit == "future" else None,
        ahead_tokens=1 if policy.kv.convention == "paper" else 0,
        lengths=_lengths(policy) if goes_by_lengths(policy) else None,
        requeue=REQUEUES[policy.preemption.requeue],
        restarts=policy.preemption.resume == "restart",
        guard=_guard(policy.preemption),
        watermark=policy.kv.watermark,
        headroom=policy.kv.headroom.share if policy.kv.headroom is not None else 0.0,
        short_tokens=policy.kv.headroom.prompt_tokens if policy.kv.headroom is not None else UNLIMITED,
        namespace=NAMESPACES[policy.kv.share],
        victims=tuple(VICTIMS[name] for name in policy.preemption.victim),
        route=route(policy.routing.kind, policy.routing.seed),
        classes={slo.name: (priority, slo.tbt_s) for priority, slo in enumerate(policy.classes)},
    )


def _limit(limit: Limit) -> LimitRule:
    size, period_s = size_of(limit)
    when = limit.when
    return LimitRule(
        scope=limit.scope,
        dimension=limit.dimension,
        algorithm=_algorithm(limit),
        limit=size,
        period_s=period_s,
        burst=limit.burst or size,
        mode=limit.mode,
        tier=when.tier if when is not None else None,
        tenant=when.tenant if when is not None else None,
        slo_class=when.class_ if when is not None else None,
    )


def _algorithm(limit: Limit) -> Algorithm:
    if limit.dimension in AT_ONCE:
        return "gauge"
    return limit.algorithm or ("gcra" if limit.dimension == "requests" else "token_bucket")


def _order(fairness: Fairness) -> Order:
    match fairness.kind:
        case "vtc":
            return LeastCounter()
        case "lcf":
            return LeastServed()
        case "drr":
            return DeficitRoundRobin(None if fairness.quantum_tokens == "auto" else fairness.quantum_tokens)
        case "fcfs":
            return Oldest()


def _window_tokens(fairness: Fairness) -> int | None:
    if isinstance(fairness.window_tokens, int):
        return fairness.window_tokens
    # By arrival there is nothing to decide at admission, and what waits there the scheduler could not order.
    return OPEN_TOKENS if fairness.kind == "fcfs" and fairness.window_tokens == "auto" else None


def _lengths(policy: Policy) -> LengthRule:
    prediction = policy.prediction
    return LengthRule(prediction, policy.kv.estimate, refinement(prediction))


def _guard(preemption: Preemption) -> Guard | None:
    if preemption.max_per_sequence is None:
        return None
    return Guard(preemption.max_per_sequence, preemption.protected_share)


def _offsets(deadlines: Deadlines) -> OffsetRule:
    """Of a deadline to the last schedulable time. With `slack: exact` the columns hold the deadlines themselves."""
    steps = OffsetSteps(below=0.0, above=0.0) if deadlines.slack == "exact" else deadlines.offset_steps
    return OffsetRule(below=steps.below, above=steps.above, kv_threshold=steps.kv_threshold)


def _most_tokens(budget: int | str | StepBudget) -> int:
    if isinstance(budget, StepBudget):
        return budget.max
    return budget if isinstance(budget, int) else UNLIMITED


def _budget(budget: int | str | StepBudget) -> BudgetRule | None:
    if not isinstance(budget, StepBudget):
        return None
    max_step_s = budget.max_step_s if isinstance(budget.max_step_s, float) else None
    return BudgetRule(max_step_s=max_step_s, share=budget.share, tile=budget.tile, min=budget.min)


def _stage(index: int, stage: Stage) -> DecodeRule | PrefillRule:
    if stage.decode is not None:
        return _decode(index, stage.decode)
    if stage.prefill is not None:
        return _prefill(index, stage.prefill)
    raise ValueError(f"batching.stages[{index}] has neither `decode` nor `prefill`; loading refuses such a policy")


def _decode(index: int, stage: DecodeStage) -> DecodeRule:
    return DecodeRule(
        index=index,
        due=stage.when == "due",
        order=stage.order,
        exclusive=stage.exclusive,
        min_decoding=_min_decoding(stage.if_),
    )


def _prefill(index: int, stage: PrefillStage) -> PrefillRule:
    sources = (stage.from_,) if isinstance(stage.from_, str) else stage.from_
    return PrefillRule(
        index=index,
        started="started" in sources,
        waiting="waiting" in sources,
        merge=stage.merge,
        chunked=stage.chunked,
        chunk=stage.chunk or 0,
        max_sequences=stage.max_sequences or UNLIMITED,
        longest=stage.max_remaining_tokens or UNLIMITED,
        order=stage.order,
        exclusive=stage.exclusive,
        min_decoding=_min_decoding(stage.if_),
    )


def _min_decoding(condition: StageCondition | None) -> int:
    return condition.decoding.at_least if condition is not None and condition.decoding is not None else 0
