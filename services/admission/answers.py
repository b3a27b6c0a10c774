"""What the core hears of a request, and what its gateway is told of the decision."""

from policies.commands import Queue, Refuse, Release, Resume
from policies.events import Arrived
from services.wire import Admitted, Queued, Refused, Submit

INT32_BYTES = 4


def queued(command: Queue) -> Queued:
    """It waits."""
    return Queued(command.request, command.position, command.expected_wait_s, command.limits)


def refused(command: Refuse) -> Refused:
    """It is not let in."""
    return Refused(
        command.request,
        command.code,
        command.message,
        command.retry_after_s,
        command.dimension,
        command.position,
        command.limits,
    )


def arrived(submit: Submit, waited_s: float) -> Arrived:
    """What the core hears of a request that was sent; `waited_s`: since it came, where it was sent before."""
    return Arrived(
        request=submit.request,
        tenant=submit.tenant,
        tier=submit.tier,
        prompt_tokens=len(submit.prompt) // INT32_BYTES,
        max_output_tokens=0 if submit.pooling else submit.max_output_tokens,
        num_choices=len(submit.sampling),
        weight=submit.weight,
        project=submit.project,
        key=submit.key,
        service_tier=submit.service_tier,
        allowed_classes=submit.allowed_classes,
        declared=submit.declared,
        resent=submit.resent,
        attempt=submit.attempt,
        made_tokens=0 if submit.pooling else sum(map(len, submit.outputs)) // INT32_BYTES,
        waited_s=waited_s,
    )


def admitted(command: Release | Resume, revision: int, scheduler_epoch: int, attempt: int) -> Admitted:
    """A request was released, or sent on again; its stamps are to be added."""
    told = Admitted(command.request, command.slo_class, revision, 0, 0, scheduler_epoch, attempt=attempt)
    if isinstance(command, Release):
        told.limits, told.waits_s, told.counter = command.limits, command.waits_s, command.counter
    return told
