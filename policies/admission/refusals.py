"""Why a request is not served, as its client is told: what is wrong, by how much, and what to do.

Owns the codes and sentences of admission, and when the queue is full; takes and gives nothing.
"""

from math import ceil

from policies.admission.drain import LONGEST_RETRY_S
from policies.admission.limits.items import LimitItem
from policies.admission.limits.rules import GAUGES
from policies.commands import Refuse
from policies.document.schema import Queue
from policies.events import Arrived, OverLimit

NO_CAPACITY_RETRY_S = 1.0
LEAST_RETRY_S = 1.0
LATE = "would_be_late"
TOO_LONG = "context_length_exceeded"
EXCEEDS_LIMIT = "request_exceeds_limit"
MISTAKES = (TOO_LONG, EXCEEDS_LIMIT)
"""Codes of requests that can never be served as they are: they count against their caller's `requests`."""
PERIODS = {60: "minute", 86_400: "day"}
NOUNS = {
    "requests": "requests",
    "prompt_tokens": "prompt tokens",
    "output_tokens": "output tokens",
    "total_tokens": "tokens",
    "concurrency": "unfinished requests",
    "queued": "waiting requests",
}


def too_long(request: int, tenant: str, prompt_tokens: int, max_output_tokens: int, most_tokens: int) -> Refuse:
    """No executor could hold it."""
    sentence = (
        f"This model's maximum context length is {most_tokens} tokens, but the request needs"
        f" {prompt_tokens + max_output_tokens} ({prompt_tokens} in the prompt, {max_output_tokens} for the output)."
        " Shorten the prompt or lower max_tokens."
    )
    return Refuse(request, TOO_LONG, sentence, tenant=tenant)


def settled(event: Arrived) -> Refuse:
    """It is to be gone on with, and was charged for and settled because nobody did for too long."""
    made = f"after {event.made_tokens} tokens"
    sentence = f"the scheduler was lost {made}, and the request was given up meanwhile; try again"
    return Refuse(event.request, "scheduler_lost", sentence, tenant=event.tenant)


def no_capacity(request: int, tenant: str, without_s: float) -> Refuse:
    """There is no executor, and has not been for a while."""
    sentence = f"No executor has been available for {without_s:.0f} s; retry in 1 s."
    return Refuse(request, "no_capacity", sentence, NO_CAPACITY_RETRY_S, tenant=tenant)


def queue_full(
    event: Arrived, most: Queue, *, num_admissions: int, num_own: int, num_waiting: int, wait_s: float
) -> Refuse | None:
    """Too many of its tenant or of all wait already; None: it may wait too. Gateways go round the processes of
    admission, so each keeps its share of what may wait.
    """
    shared = f", shared by {num_admissions} admission processes" if num_admissions > 1 else ""
    if num_own >= max(1, most.per_tenant_max // num_admissions):
        sentence = (
            f'Tenant "{event.tenant}" already has {num_own} requests waiting'
            f" (queue.per_tenant_max is {most.per_tenant_max}{shared})"
        )
    elif num_waiting >= max(1, most.total_max // num_admissions):
        sentence = f"{num_waiting} requests are waiting (queue.total_max is {most.total_max}{shared})"
    else:
        return None
    message = f"{sentence}; retry in {wait_s:.0f} s."
    return Refuse(event.request, "queue_full", message, wait_s, position=num_waiting, tenant=event.tenant)


def timed_out(request: int, tenant: str, ttl_s: float, wait_s: float) -> Refuse:
    """It waited as long as anybody may."""
    sentence = f"The request waited {ttl_s:g} s in the queue (queue.ttl_s) without being started"
    return Refuse(request, "queue_timeout", f"{sentence}; retry in {wait_s:.0f} s.", wait_s, tenant=tenant)


def late(request: int, tenant: str, slo_class: str, promised_s: float, *, total_s: float, retry_s: float) -> Refuse:
    """Its first token cannot come as soon as its class promises (`admission.refuse_when_late`)."""
    retry_s = round(min(max(retry_s, LEAST_RETRY_S), LONGEST_RETRY_S), 3)
    sentence = (
        f'The first token would come after about {max(total_s, promised_s):.1f} s, and class "{slo_class}" is promised'
        f" it within {promised_s:g} s (admission.refuse_when_late)"
    )
    return Refuse(request, LATE, f"{sentence}; retry in {retry_s:.0f} s.", retry_s, tenant=tenant)


def store_lost(event: Arrived, lost_s: float) -> Refuse:
    """What decides is kept elsewhere, and cannot be asked."""
    sentence = (
        f"Limits and counters are kept in a store that has been out of reach for more than {lost_s:.0f} s, and the"
        " request cannot be admitted without it; retry in 1 s."
    )
    return Refuse(event.request, "store_lost", sentence, NO_CAPACITY_RETRY_S, tenant=event.tenant)


def unchecked(request: int, tenant: str, ttl_s: float) -> Refuse:
    """The store has not answered for as long as anybody may wait."""
    sentence = f"The limits of the request could not be checked within {ttl_s:g} s (queue.ttl_s); retry in 1 s."
    return Refuse(request, "queue_timeout", sentence, NO_CAPACITY_RETRY_S, tenant=tenant)


def over_limit(event: OverLimit, tenant: str, wait_s: float) -> Refuse:
    """A limit does not allow it now; `wait_s` as the limit says, or an estimate where it cannot know."""
    item = event.item
    sentence = f"{_whose(item)} may {_most(item)}: Limit {item.limit}, Used {event.used}, Requested {item.amount}"
    when = f"retry in {_seconds(wait_s)}"
    if event.wait_s is None:
        when = f"retry when one of them has ended, perhaps in {_seconds(wait_s)}"
    return Refuse(
        event.request,
        "rate_limit_exceeded",
        f"{sentence}; {when}.",
        wait_s,
        dimension=item.dimension,
        limits=event.limits,
        tenant=tenant,
    )


def exceeds_limit(event: OverLimit, tenant: str) -> Refuse:
    """It asks for more than a limit ever allows at once."""
    item = event.item
    what = "Send fewer" if item.dimension == "requests" else "Shorten the prompt or lower max_tokens"
    sentence = (
        f"{_whose(item)} can never take more than {item.most} {NOUNS[item.dimension]} at once: Limit {item.limit},"
        f" Used {event.used}, Requested {item.amount}. {what}."
    )
    return Refuse(event.request, EXCEEDS_LIMIT, sentence, dimension=item.dimension, limits=event.limits, tenant=tenant)


def _whose(item: LimitItem) -> str:
    who = "All requests together" if item.scope == "model" else f'{item.scope.capitalize()} "{item.subject}"'
    return f'{who}, with class "{item.slo_class}",' if item.slo_class else who


def _most(item: LimitItem) -> str:
    noun = NOUNS[item.dimension]
    if item.dimension in GAUGES:
        return f"have {item.limit} {noun} at once"
    period = PERIODS.get(item.period_s, f"{item.period_s} s")
    verb = "make" if item.dimension == "requests" else "use"
    at_once = "" if item.most == item.limit else f", {item.most} at once"
    return f"{verb} {item.limit} {noun} a {period}{at_once}"


def _seconds(wait_s: float) -> str:
    # Rounded up: whoever waits what it reads must pass.
    return f"{ceil(wait_s * 1000) / 1000:g} s"
