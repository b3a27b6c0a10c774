"""What a gateway is told of a decision about its request."""

from policies.commands import Queue, Refuse
from services.wire import Queued, Refused


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
