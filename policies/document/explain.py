"""A policy in words: what it will do, for whoever is about to save it.

Speaks only of what the document says; predicts nothing.
"""

from policies.document.explain_fairness import fairness_in_words
from policies.document.explain_limits import limits_in_words
from policies.document.explain_memory import memory_in_words, prediction_in_words
from policies.document.rules import orders_of, sources_of, takes_all
from policies.document.schema import (
    Admission,
    ClassifyRule,
    DecodeStage,
    Ewma,
    Policy,
    PrefillStage,
    Stage,
    StageCondition,
    StandingQueue,
    StepBudget,
)
from policies.document.tracing import tracing_in_words

ORDERS = {
    "arrival": "the earliest arrival",
    "predicted_output": "the shortest predicted output",
    "most_predicted_output": "the longest predicted output",
    "predicted_kv_volume": "the least KV predicted, summed over steps",
    "admission": "the earliest start",
    "prompt_tokens": "the shortest prompt",
    "remaining_prompt_tokens": "the least left of a prompt",
    "class_priority": "the most important class",
    "last_schedulable_time": "the nearest deadline",
    "aged": "the oldest of those that are no longer young",
}
ROUTES = {
    "least_kv": "A released request goes to the executor with the fewest KV tokens held or promised.",
    "random": "A released request goes to an executor drawn at random.",
}
SOURCES = {"waiting": "waiting prompts", "started": "started prompts"}


def explain(policy: Policy) -> str:
    """What a policy will do: one heading a section, one sentence a line."""
    parts = [
        ("Classes, the most important first", _classes(policy)),
        ("Who gets which class", _classify(policy)),
        ("Limits", limits_in_words(policy.limits)),
        ("Admission", _admission(policy)),
        ("Each step", _batching(policy)),
        ("Deadlines", _deadlines(policy)),
        ("KV memory", memory_in_words(policy)),
        ("Output lengths", prediction_in_words(policy)),
        ("Tracing", tracing_in_words(policy.tracing)),
    ]
    title = f"{policy.name}: {policy.description}" if policy.description else policy.name
    lines = [title]
    for heading, sentences in parts:
        if not sentences:
            continue
        lines += ["", f"{heading}:", *(f"  {sentence}" for sentence in sentences)]
    return "\n".join(lines) + "\n"


def stage_in_words(stage: Stage) -> str:
    """One stage as a sentence."""
    if stage.decode is not None:
        return _decode(stage.decode)
    if stage.prefill is not None:
        return _prefill(stage.prefill)
    return "Nothing."


def rule_in_words(rule: ClassifyRule) -> str:
    """One classify rule as a sentence."""
    when = rule.when
    fields = () if when is None else (("tier", when.tier), ("tenant", when.tenant), ("service_tier", when.service_tier))
    conditions = [f'{name} is "{value}"' for name, value in fields if value is not None]
    return f"{' and '.join(conditions) or 'everything else'}: {rule.class_}."


def _classes(policy: Policy) -> list[str]:
    return [
        f"{one.name}: the first token within {one.ttft_s:g} s, then never more than {one.tbt_s:g} s between tokens."
        for one in policy.classes
    ]


def _classify(policy: Policy) -> list[str]:
    if not policy.classify:
        return [f"everything: {policy.classes[-1].name}."]
    if len(policy.classify) == 1:
        return [f"everything: {policy.classify[0].class_}."]
    return [rule_in_words(rule) for rule in policy.classify]


def _admission(policy: Policy) -> list[str]:
    queue = policy.queue
    backlog = (
        f"Waiting at most: {queue.per_tenant_max} requests of a tenant, {queue.total_max} in all, "
        f"{queue.ttl_s:g} s each; beyond that a request is refused."
    )
    return [
        *fairness_in_words(policy.fairness),
        backlog,
        *_lateness(policy.admission),
        ROUTES[policy.routing.kind],
    ]


def _lateness(admission: Admission) -> list[str]:
    if not admission.refuse_when_late:
        return []
    who = "hoever cannot have the first token as soon as its class promises is refused, on arrival or while it waits."
    match admission.refuse_when_late:
        case StandingQueue(after_s=after_s) if after_s:
            return [f"Once more than three of four requests have been late for {after_s:g} s, w{who}"]
        case _:
            return [f"W{who}"]


def _batching(policy: Policy) -> list[str]:
    batching = policy.batching
    limit = batching.token_budget if isinstance(batching.token_budget, int) else None
    most = f"at most {batching.max_decodes} decodes a step and {batching.max_sequences} sequences holding KV"
    lines = [
        f"{_budget(batching.token_budget)}; {most}.",
        *(f"{number}. {stage_in_words(stage)}" for number, stage in enumerate(batching.stages, 1)),
    ]
    if any("aged" in order for order in orders_of(batching.stages)):
        lines.append(f"A sequence is young until {batching.aging_s:g} s after its arrival.")
    prefills = [stage.prefill for stage in batching.stages if stage.prefill is not None]
    always = [stage for stage in prefills if takes_all(stage)]
    if limit is not None and not any(stage.chunked for stage in always if "waiting" in sources_of(stage)):
        lines.append(f"Prompts longer than {limit} tokens are refused, because no stage cuts them.")
    cut = any(stage.chunked for stage in prefills if "waiting" in sources_of(stage))
    if cut and not any(stage.chunked for stage in always if "started" in sources_of(stage)):
        lines.append("Started prompts that these stages cannot finish come before all of them, cut to the budget.")
    return lines


def _budget(budget: int | str | StepBudget) -> str:
    if isinstance(budget, int):
        return f"A step has {budget} tokens, offered in this order"
    if not isinstance(budget, StepBudget):
        return "A step has no limit of tokens"
    time = f"{budget.max_step_s} s"
    if budget.max_step_s == "auto":
        time = f"{budget.share:.0%} of the time that the most urgent decode's deadline leaves"
    return (
        f"A step has as many tokens as take {time}, offered in this order: with prompts a multiple of {budget.tile}, "
        f"{budget.min} at least and {budget.max} at most, by what the last steps took"
    )


def _decode(stage: DecodeStage) -> str:
    what = "Decodes that are due" if stage.when == "due" else "All decodes not yet in the step"
    return f"{_condition(stage.if_)}{what}, one token each; {_order(stage.order)} first.{_exclusive(stage.exclusive)}"


def _prefill(stage: PrefillStage) -> str:
    sources = sources_of(stage)
    if len(sources) == 1:
        what = SOURCES[sources[0]]
    else:
        what = "started and waiting prompts together" if stage.merge else "started prompts, then waiting ones"
    if stage.max_remaining_tokens is not None:
        what = f"{what} with at most {stage.max_remaining_tokens} tokens left"
    if not stage.chunked:
        size = "whole"
    elif stage.chunk is not None:
        size = f"in chunks of multiples of {stage.chunk} tokens"
    else:
        size = "cut to what is left of the budget"
    most = "" if stage.max_sequences is None else f", at most {stage.max_sequences} a step"
    what = f"{_condition(stage.if_)}{what[0].upper()}{what[1:]}"
    return f"{what}, {size}{most}; {_order(stage.order)} first.{_exclusive(stage.exclusive)}"


def _condition(condition: StageCondition | None) -> str:
    if condition is None or condition.decoding is None:
        return ""
    return f"When at least {condition.decoding.at_least} sequences are decoding: "


def _order(keys: tuple[str, ...]) -> str:
    return ", then ".join(ORDERS[key] for key in keys) or ORDERS["arrival"]


def _exclusive(exclusive: bool) -> str:
    return " If there were any, nothing else runs in this step." if exclusive else ""


def _deadlines(policy: Policy) -> list[str]:
    if not any(stage.decode is not None and stage.decode.when == "due" for stage in policy.batching.stages):
        return ["No stage asks for them: decodes are planned as soon as there is room."]
    deadlines, offset = policy.deadlines, policy.deadlines.offset_steps
    mean = (
        f"an average with weight {deadlines.step_time.ewma:g} for the newest step"
        if isinstance(deadlines.step_time, Ewma)
        else "the mean of all steps"
    )
    if deadlines.slack == "exact":
        return [
            f"A decode is due when a step after this one, as long as {mean}, would end too late for its class.",
            "While it has no token it is due at once.",
            f"Once {deadlines.eager_kv:.0%} of the KV blocks are in use, every decode is due.",
        ]
    due = (
        f"A decode is due {offset.below:g} step times before its class's gap between tokens runs out, "
        f"{offset.above:g} once {offset.kv_threshold:.0%} of the KV blocks are in use; a step time is {mean}."
    )
    return [due]
