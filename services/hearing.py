"""Which messages a service takes from which neighbour: the others it ignores, with a warning that counts them.

A proved neighbour is still only what it said it is: an executor sets no policy and a gateway ends no step. Owns who may
say what; knows neither streams' bytes nor what messages bring about.
"""

import logging
from collections import Counter
from typing import Any

from services.framing import is_milestone
from services.streams import Receiver, Stream
from services.wire import (
    Admitted,
    AnyMessage,
    Cancel,
    Capacity,
    Dispatch,
    EndsKept,
    Holds,
    InvalidRequest,
    PolicyAbort,
    PolicyCommit,
    PolicyNow,
    PolicyPrepare,
    PolicyPrepared,
    PolicyStatus,
    Queued,
    Refused,
    RequestEnded,
    Stopped,
    Submit,
    TokenFrame,
    Usage,
)
from services.wire_operator import MirrorAsked, Report, ReportAsked
from services.wire_steps import ExecutorReady, ForgetMessage, StepFailed, StepMessage, StepResult

POLICY: tuple[type[Any], ...] = (PolicyPrepare, PolicyCommit, PolicyAbort, PolicyNow, PolicyStatus)
HEARS: dict[str, dict[str, tuple[type[Any], ...]]] = {
    "admission": {
        "gateway": (Submit, InvalidRequest, Cancel, RequestEnded, ReportAsked, PolicyPrepared),
        "scheduler": (Usage, RequestEnded, Holds, Capacity, PolicyPrepared),
        "admission": (*POLICY, PolicyPrepared),
        "operator": (ReportAsked, PolicyPrepared),
    },
    "scheduler": {
        "admission": (Dispatch, Cancel, EndsKept, *POLICY),
        "gateway": (Cancel, Stopped),
        "executor": (ExecutorReady, StepResult, StepFailed),
        "operator": (MirrorAsked,),
    },
    "gateway": {
        "admission": (Admitted, Queued, Refused, RequestEnded, Capacity, Report, *POLICY),
        "scheduler": (TokenFrame, RequestEnded, Capacity),
    },
    "executor": {"scheduler": (StepMessage, ForgetMessage)},
}
"""Service -> neighbour -> what it may say."""

log = logging.getLogger(__name__)


class Hearing:
    """The receiver of a service's streams, who is told only what the neighbour at the other end may say."""

    def __init__(self, service: str, receiver: Receiver) -> None:
        self._hears = HEARS[service]
        self._receiver = receiver
        self._ignored: Counter[tuple[str, str]] = Counter()

    def received(self, stream: Stream, message: AnyMessage) -> None:
        """Hand it on, or ignore it."""
        if type(message) in self._hears.get(stream.peer.service, ()):
            self._receiver.received(stream, message)
            return
        peer, kind = stream.peer, type(message).__name__
        self._ignored[peer.service, kind] += 1
        count = self._ignored[peer.service, kind]
        if is_milestone(count):
            sentence = "%s %s sent a %s, which is not for it to say; %d of them ignored so far"
            log.warning(sentence, peer.service, peer.instance, kind, count)

    def opened(self, stream: Stream) -> None:
        """As `Receiver`."""
        self._receiver.opened(stream)

    def closed(self, stream: Stream, reason: str) -> None:
        """As `Receiver`."""
        self._receiver.closed(stream, reason)

    def stalled(self, stream: Stream) -> None:
        """As `Receiver`."""
        self._receiver.stalled(stream)

    def resumed(self, stream: Stream) -> None:
        """As `Receiver`."""
        self._receiver.resumed(stream)
