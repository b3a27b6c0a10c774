"""What must hold between the values of a policy: each rule is a function that adds the problems it finds.

A rule looks only at values that are right in themselves, so one mistake is reported once; a rule that concludes from
something missing speaks only when all it looks at could be read.
"""

from msgspec import UNSET

from policies.document.fairness_rules import check_fairness
from policies.document.limit_rules import check_limits
from policies.document.memory_rules import check_memory
from policies.document.problems import nearest
from policies.document.reading import Path, Reading
from policies.document.schema import (
    ClassifyRule,
    Deadlines,
    DecodeStage,
    Match,
    PrefillStage,
    Stage,
    StageCondition,
    StepBudget,
)
from policies.document.words import listed

STAGES: Path = ("batching", "stages")


def check_policy(reading: Reading) -> None:
    """Add every problem between values to `reading.problems`."""
    _classes_are_distinct(reading)
    _classify_names_known_classes(reading)
    _classify_reaches_every_rule(reading)
    for index in range(reading.length(STAGES)):
        _stage_is_one_kind(reading, (*STAGES, index))
        _decode_stage(reading, (*STAGES, index, "decode"))
        _prefill_stage(reading, (*STAGES, index, "prefill"))
    _aging_has_an_effect(reading)
    _routing_seed_has_an_effect(reading)
    _step_budget_can_be_met(reading)
    _slack_has_an_effect(reading)
    _every_request_can_finish(reading)
    _started_prompts_go_on(reading)
    _victims_are_reachable(reading)
    check_memory(reading)
    check_fairness(reading)
    check_limits(reading)


def _classes_are_distinct(reading: Reading) -> None:
    seen: dict[str, int] = {}
    for index in range(reading.length(("classes",))):
        name = reading.get(("classes", index, "name"))
        if name is UNSET:
            continue
        if name in seen:
            path = ("classes", index, "name")
            reading.add(path, f'the class "{name}" is listed twice', "every class needs a name of its own")
        seen.setdefault(name, index)


def _classify_names_known_classes(reading: Reading) -> None:
    names = [reading.get(("classes", index, "name")) for index in range(reading.length(("classes",)))]
    if not names or UNSET in names:
        return
    for index in range(reading.length(("classify",))):
        path = ("classify", index, "class")
        name = reading.get(path)
        if name is not UNSET and name not in names:
            reading.add(path, f'there is no class "{name}"', f"allowed: {listed(names)}", nearest(name, names))


def _classify_reaches_every_rule(reading: Reading) -> None:
    length = reading.length(("classify",))
    if length == 0:
        return
    rules = [reading.get(("classify", index)) for index in range(length)]
    for index, rule in enumerate(rules):
        for earlier, other in enumerate(rules[:index]):
            if rule is not UNSET and other is not UNSET and _covers(other, rule):
                wrong = f"no request reaches this rule, classify[{earlier}] takes all that it would match"
                reading.add(("classify", index), wrong, "put the narrower rule first or remove it")
                break
    last = rules[-1]
    if last is not UNSET and _conditions(last):
        reading.add(
            ("classify", length - 1),
            "the last rule does not match everything",
            "end the list with a rule that has no `when`, such as {class: NAME}",
        )


def _conditions(rule: ClassifyRule) -> dict[str, str]:
    when = rule.when or Match()
    fields = {"tier": when.tier, "tenant": when.tenant, "service_tier": when.service_tier}
    return {name: value for name, value in fields.items() if value is not None}


def _covers(earlier: ClassifyRule, later: ClassifyRule) -> bool:
    """Whether every request that `later` would match matches `earlier` too."""
    return _conditions(earlier).items() <= _conditions(later).items()


def _stage_is_one_kind(reading: Reading, path: Path) -> None:
    kinds = [kind for kind in ("decode", "prefill") if reading.names((*path, kind))]
    one = "exactly one of decode, prefill is allowed (`decode: {}` takes the defaults)"
    if len(kinds) == 2:
        reading.add(path, "the stage has both decode and prefill", f"{one}; write two stages")
    elif reading.get(path) is not UNSET and reading.get(path).decode is None and reading.get(path).prefill is None:
        reading.add(path, "the stage has neither decode nor prefill", one)


def _decode_stage(reading: Reading, path: Path) -> None:
    stage = reading.get(path)
    if isinstance(stage, DecodeStage):
        _order_is_distinct(reading, path, stage.order)
        _condition_says_something(reading, path, stage.if_)
        if "remaining_prompt_tokens" in stage.order:
            wrong = "remaining_prompt_tokens orders prompts; a decode has none of its prompt left"
            allowed = "allowed here: arrival, admission, prompt_tokens, class_priority, last_schedulable_time, aged"
            reading.add((*path, "order", stage.order.index("remaining_prompt_tokens")), wrong, allowed)


def _prefill_stage(reading: Reading, path: Path) -> None:
    stage = reading.get(path)
    if not isinstance(stage, PrefillStage):
        return
    _order_is_distinct(reading, path, stage.order)
    _condition_says_something(reading, path, stage.if_)
    if "last_schedulable_time" in stage.order:
        wrong = "last_schedulable_time orders decodes; a prompt has no such time"
        allowed = "allowed here: arrival, admission, prompt_tokens, remaining_prompt_tokens, class_priority, aged"
        reading.add((*path, "order", stage.order.index("last_schedulable_time")), wrong, allowed)
    sources = sources_of(stage)
    if not sources or len(set(sources)) < len(sources):
        wrong = "the list names nothing" if not sources else f"{listed(sources)} names one source twice"
        reading.add((*path, "from"), wrong, "allowed: waiting, started, [started, waiting]")
    elif stage.merge and len(sources) == 1:
        wrong = f"there is nothing to merge with {sources[0]}"
        reading.add((*path, "merge"), wrong, "merge needs from: [started, waiting]")
    _chunks_fit_the_budget(reading, path, stage)


def _chunks_fit_the_budget(reading: Reading, path: Path, stage: PrefillStage) -> None:
    written = reading.get(("batching", "token_budget"))
    budget = written if reading.names(("batching", "token_budget")) else 512
    if stage.chunk is not None and not stage.chunked:
        allowed = "remove `chunk`, or set chunked: true"
        reading.add((*path, "chunk"), "a stage with chunked: false makes no chunks", allowed)
    elif stage.chunk is not None and isinstance(budget, int) and stage.chunk > budget:
        wrong = f"a chunk of {stage.chunk} tokens never fits the token_budget of {budget}"
        reading.add((*path, "chunk"), wrong, f"allowed: 1 to {budget} tokens")
    elif stage.chunk is not None and isinstance(budget, StepBudget) and stage.chunk > budget.min:
        wrong = f"a chunk of {stage.chunk} tokens does not fit the shortest steps, which have {budget.min}"
        reading.add((*path, "chunk"), wrong, f"allowed: 1 to {budget.min} tokens (token_budget.min)")
    if not stage.chunked and isinstance(budget, StepBudget):
        wrong = "with a token_budget that follows time, a whole prompt may never fit"
        reading.add((*path, "chunked"), wrong, "remove it, or give batching.token_budget a number of tokens")
    if stage.chunked and budget == "none":
        wrong = "with token_budget: none a prompt would never be cut"
        reading.add(
            (*path, "chunked"), wrong, "set chunked: false here, or give batching.token_budget a number of tokens"
        )


def _order_is_distinct(reading: Reading, path: Path, order: tuple[str, ...]) -> None:
    for index, key in enumerate(order):
        if key in order[:index]:
            wrong = f"{key} is listed twice, the second has no effect"
            reading.add((*path, "order", index), wrong, "each key is allowed once")


def _condition_says_something(reading: Reading, path: Path, condition: StageCondition | None) -> None:
    if condition is not None and condition.decoding is None:
        allowed = "remove it, or write if: {decoding: {at_least: COUNT}}"
        reading.add((*path, "if"), "the condition is empty", allowed)


def _aging_has_an_effect(reading: Reading) -> None:
    path: Path = ("batching", "aging_s")
    stages = reading.get(STAGES)
    if stages is UNSET or not reading.names(path) or any("aged" in order for order in orders_of(stages)):
        return
    wrong = "no stage orders by `aged`, so aging_s changes nothing"
    reading.add(path, wrong, "remove it, or put aged first in a stage's order")


def _routing_seed_has_an_effect(reading: Reading) -> None:
    path: Path = ("routing", "seed")
    routing = reading.get(("routing",))
    if reading.names(path) and routing is not UNSET and routing.kind == "least_kv":
        wrong = "least_kv draws nothing, so the seed changes nothing"
        reading.add(path, wrong, "remove it, or say kind: random")


def _step_budget_can_be_met(reading: Reading) -> None:
    path: Path = ("batching", "token_budget")
    budget = reading.get(path)
    if not isinstance(budget, StepBudget):
        return
    for name in ("tile", "min"):
        value = getattr(budget, name)
        if value > budget.max:
            wrong = f"{value} tokens are more than the largest step has"
            reading.add((*path, name), wrong, f"allowed: 1 to {budget.max} tokens (token_budget.max)")
    if budget.max_step_s != "auto" and reading.names((*path, "share")):
        wrong = "with a number of seconds for max_step_s, share changes nothing"
        reading.add((*path, "share"), wrong, "remove it, or set max_step_s: auto")
    deadlines = reading.get(("deadlines",)) if reading.names(("deadlines",)) else Deadlines()
    if budget.max_step_s == "auto" and deadlines is not UNSET and deadlines.slack != "exact":
        wrong = "max_step_s: auto follows the deadlines themselves, and by `steps` decodes are due long before them"
        reading.add((*path, "max_step_s"), wrong, "set deadlines: {slack: exact}, or give max_step_s in seconds")


def _slack_has_an_effect(reading: Reading) -> None:
    deadlines = reading.get(("deadlines",))
    if deadlines is UNSET:
        return
    name, other = ("offset_steps", "steps") if deadlines.slack == "exact" else ("eager_kv", "exact")
    if reading.names(("deadlines", name)):
        wrong = f"with slack: {deadlines.slack}, {name} changes nothing"
        reading.add(("deadlines", name), wrong, f"remove it, or set slack: {other}")


def _every_request_can_finish(reading: Reading) -> None:
    if reading.get(STAGES) is UNSET:
        return
    stages = reading.get(STAGES)
    decodes = [stage.decode for stage in stages if stage.decode is not None]
    prefills = [stage.prefill for stage in stages if stage.prefill is not None]
    if not any(stage.when == "any" and always_holds(stage.if_) for stage in decodes):
        reading.add(
            STAGES,
            "no stage takes every decode, so some requests would never finish",
            "one stage must be decode: {when: any} without `if`",
        )
    if not any("waiting" in sources_of(stage) and takes_all(stage) for stage in prefills):
        reading.add(
            STAGES,
            "no stage always takes waiting prompts, so some requests would never start",
            "one stage must be prefill: {from: waiting} or {from: [started, waiting]} without `if` and "
            "`max_remaining_tokens`",
        )


def _started_prompts_go_on(reading: Reading) -> None:
    """Without any such stage the scheduler adds one; beside a conditional one that would be a surprise."""
    if reading.get(STAGES) is UNSET:
        return
    stages = [
        (index, stage.prefill)
        for index, stage in enumerate(reading.get(STAGES))
        if stage.prefill is not None and "started" in sources_of(stage.prefill)
    ]
    if not any(takes_all(stage) for _, stage in stages):
        for index, stage in stages:
            limit = "max_remaining_tokens" if always_holds(stage.if_) else "if"
            reading.add(
                (*STAGES, index, "prefill", limit),
                f"no stage without `{limit}` goes on with started prompts, so this one would leave them waiting",
                f"remove it, or add a stage prefill: {{from: started}} without `{limit}`",
            )


def always_holds(condition: StageCondition | None) -> bool:
    """Whether a condition holds whenever there could be work: counts of 0 do, and nothing decodes before a prefill."""
    return condition is None or (condition.decoding is not None and condition.decoding.at_least == 0)


def takes_all(stage: PrefillStage) -> bool:
    """Whether a stage takes every prompt of its sources, at any time."""
    return always_holds(stage.if_) and stage.max_remaining_tokens is None


def _victims_are_reachable(reading: Reading) -> None:
    path: Path = ("preemption", "victim")
    victims = reading.get(path)
    if victims is UNSET:
        return
    for index, victim in enumerate(victims):
        if victim in victims[:index]:
            wrong = f"{victim} is listed twice, the second is never tried"
            reading.add((*path, index), wrong, "each victim is allowed once")
        elif "self" in victims[:index]:
            wrong = f"{victim} is never tried, self before it always gives way"
            reading.add((*path, index), wrong, "self must come last")


def orders_of(stages: tuple[Stage, ...]) -> list[tuple[str, ...]]:
    """The orders of all stages."""
    parts = [part for stage in stages for part in (stage.decode, stage.prefill) if part is not None]
    return [part.order for part in parts]


def sources_of(stage: PrefillStage) -> tuple[str, ...]:
    """The sources of a prefill stage, one or several."""
    return (stage.from_,) if isinstance(stage.from_, str) else stage.from_
