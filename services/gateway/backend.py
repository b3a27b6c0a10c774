"""The gateway's side of the streams to admission and scheduler: requests out, answers in.

Owns request ids and which of them are still to end; a request ends exactly once. Knows tokens only by number and
nothing of HTTP.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Protocol

from engine.tokenizer import TextStream
from policies.document.schema import HashedKey, Tenant
from services.errors import RequestError
from services.gateway.frames import Pump
from services.gateway.policy import Revisions
from services.gateway.questions import Questions
from services.gateway.streams import Answer, Choice, Running
from services.gateway.told import Told
from services.gateway.tracing import Origin, Tracing
from services.gateway.traffic import Traffic
from services.streams import Stream
from services.traffic.rows import RequestRow
from services.wire import (
    Admitted,
    AnyMessage,
    Cancel,
    Capacity,
    InvalidRequest,
    PolicyAbort,
    PolicyCommit,
    PolicyNow,
    PolicyPrepare,
    PolicyStatus,
    Queued,
    Refused,
    RequestEnded,
    Stopped,
    Submit,
    TokenFrame,
)
from services.wire_operator import Report
from services.wire_parts import Levels

GATEWAY_BITS = 30
ADMISSION, SCHEDULER = "admission", "scheduler"
COUNTED_S = 1.0
"""How long the answer to a wrong request waits to be counted: a busy admission must not hold it up for ever."""

Counted = tuple[Told, RequestError | None]

log = logging.getLogger(__name__)


class Texts(Protocol):
    """Where detokenisers come from."""

    def stream(self) -> TextStream:
        """A fresh one."""


class Backend:
    """Receiver of both streams."""

    def __init__(self, texts: Texts, record: Callable[[RequestRow], None], tracing: Tracing) -> None:
        self.gateway = secrets.randbits(GATEWAY_BITS)
        """Upper half of every request id: tells this gateway from others and from an earlier start of itself."""
        self.texts = texts
        self.revisions = Revisions()
        self.capacity: Capacity | None = None
        self.levels: dict[str, Levels] = {}
        """How full each service is, as it said last."""
        self.running: dict[int, Running] = {}
        self.on_idle: Callable[[], None] = _ignore
        """Called when the last running request has ended."""
        self._traffic = Traffic(record)
        self._next = 0
        self._unheard: dict[int, Answer] = {}
        """As `Answer.unheard`, of all."""
        self._counting: dict[int, asyncio.Future[Counted]] = {}
        self.tracing = tracing
        self._pump = Pump(self._choice_ended, tracing)
        self._streams: dict[str, Stream] = {}
        self._stalled: dict[str, bool] = {}
        self.questions = Questions(lambda: self._streams.get(ADMISSION))

    # --- what the HTTP side asks --------------------------------------------------------------------------------

    @property
    def num_discarded(self) -> int:
        """Tokens that came for nobody, since the start."""
        return self._pump.num_discarded

    def missing(self) -> list[str]:
        """What keeps new requests from being served, in words; empty when nothing does."""
        reasons = [f"no stream to {service}" for service in (ADMISSION, SCHEDULER) if service not in self._streams]
        reasons += [f"{service} does not read its stream" for service, stalled in self._stalled.items() if stalled]
        if self.revisions.now is None:
            reasons.append("no policy revision received")
        if self.capacity is None or self.capacity.num_executors == 0:
            reasons.append("no executor is ready")
        return reasons

    def check_open(self) -> None:
        """Whether a request can be handed on.

        Raises:
            RequestError: a stream is down or nothing is known of the executors yet.
        """
        if ADMISSION not in self._streams or self._stalled.get(ADMISSION):
            raise RequestError("admission_lost", "admission cannot be reached at the moment; try again")
        if SCHEDULER not in self._streams:
            raise RequestError("no_capacity", "the scheduler cannot be reached at the moment; try again")
        if self.capacity is None or not self.capacity.max_sequence_tokens:
            raise RequestError("no_capacity", "no executor is ready yet; try again")

    def submit(self, submits: Sequence[Submit], answer: Answer, stops: Sequence[str], origin: Origin) -> None:
        """Give each Submit its id and hand it on; the answer gets their choices in this order."""
        for submit in submits:
            num_choices = len(submit.sampling)
            submit.request = request = self._number(num_choices)
            running = Running(request, num_choices, answer)
            self.running[request] = answer.running[request] = running
            self._unheard[request] = answer
            answer.unheard[request] = None
            for sequence in running.sequences:
                self._pump.choices[sequence] = answer.add(running, self.texts.stream(), stops)
        answer.on_written = self.tracing.written
        self.tracing.begin(submits, answer, origin)
        now = self.revisions.now
        for submit in submits:
            self._traffic.arrived(submit, 0 if now is None else now.revision)
            self._send(ADMISSION, submit)

    async def count_invalid(self, tenant: Tenant, key: HashedKey) -> Counted:
        """Have a wrong request counted against its caller's limits.

        Returns what is left of them, which is nothing where admission cannot say it in time, and the refusal of a
        caller who is over one.
        """
        request = self._number(1)
        counted: asyncio.Future[Counted] = asyncio.get_running_loop().create_future()
        self._counting[request] = counted
        if ADMISSION not in self._streams:
            counted.set_result((Told(), None))
        self._send(ADMISSION, InvalidRequest(request, tenant.name, key.project, key.id, tenant.tier))
        try:
            async with asyncio.timeout(COUNTED_S):
                return await counted
        except TimeoutError:
            return Told(), None
        finally:
            del self._counting[request]

    def cancel(self, answer: Answer, failure: RequestError) -> None:
        """End what is left of an answer, here and in the services behind."""
        for request in answer.unheard:
            del self._unheard[request]
        answer.unheard.clear()
        for running in list(answer.running.values()):
            self._forget(running)
            if not running.admitted:
                self._traffic.gone(running.request, "cancelled", failure.code)
            cancel = Cancel(running.request, failure.code)
            self._send(ADMISSION, cancel)
            self._send(SCHEDULER, cancel)
        answer.fail(failure)

    def cancel_all(self, failure: RequestError) -> None:
        """End everything."""
        for running in list(self.running.values()):
            self.cancel(running.answer, failure)

    # --- Receiver -----------------------------------------------------------------------------------------------

    def opened(self, stream: Stream) -> None:
        """A stream is up."""
        self._streams[stream.peer.service] = stream
        self._stalled[stream.peer.service] = False

    def stalled(self, stream: Stream) -> None:
        """A service does not read."""
        self._stalled[stream.peer.service] = True

    def resumed(self, stream: Stream) -> None:
        """It reads again."""
        self._stalled[stream.peer.service] = False

    def closed(self, stream: Stream, reason: str) -> None:
        """A stream is down: what depended on it ends now."""
        service = stream.peer.service
        if self._streams.get(service) is not stream:  # an older connection, replaced meanwhile
            return
        del self._streams[service]
        self.levels.pop(service, None)
        log.warning("stream to %s lost: %s", service, reason)
        if service == ADMISSION:
            # Running requests go on without it; its backlog is gone.
            self._fail_all("admission_lost", "admission was lost while the request waited; try again", admitted=False)
            for request in list(self._unheard):
                self._heard(request)
            for request in list(self._counting):
                self._heard(request)
        else:
            self._fail_all("scheduler_lost", "the scheduler was lost while the request ran; try again", admitted=True)
            self._traffic.lost_but(self.running)

    def received(self, stream: Stream, message: AnyMessage) -> None:
        """A message of either service."""
        match message:
            case TokenFrame():
                self._pump.deliver(message, stream.clock)
            case Queued():
                answering = self._unheard.get(message.request)
                if answering is not None:
                    answering.told.queued(message)
            case Admitted():
                self._heard(message.request).admitted(message)
                self.tracing.let(message, stream.clock)
                self._admitted(message)
            case Refused():
                self._refused(message)
            case RequestEnded():
                self._request_ended(message)
            case Capacity() if message.levels is not None:
                self.levels[stream.peer.service] = message.levels
            case Capacity():
                self.capacity = message
            case Report():
                self.questions.answered(message)
            case PolicyPrepare() | PolicyCommit() | PolicyAbort() | PolicyNow() | PolicyStatus():
                before = self.revisions.policy
                answer = self.revisions.received(message)
                if answer is not None:
                    stream.send(answer)
                if self.revisions.policy is not before:
                    self.tracing.policy(self.revisions)
            case _:
                log.warning("%s sent a %s, which is not for a gateway", stream.peer.service, type(message).__name__)

    # --- what admission said ------------------------------------------------------------------------------------

    def _heard(self, request: int) -> Told:
        """Admission has spoken, or never will. Returns where to keep what it said."""
        counted = self._counting.get(request)
        if counted is not None and not counted.done():
            told = Told()
            counted.set_result((told, None))
            return told
        answer = self._unheard.pop(request, None)
        if answer is None:
            return Told()  # nobody waits for it any more
        del answer.unheard[request]
        answer.wake()
        return answer.told

    def _refused(self, message: Refused) -> None:
        error = RequestError(
            message.code, message.message, retry_after_s=message.retry_after_s, dimension=message.dimension
        )
        counted = self._counting.get(message.request)
        if counted is not None and not counted.done():
            told = Told()
            told.refused(message)
            counted.set_result((told, error))
            return
        self._heard(message.request).refused(message)
        self._traffic.gone(message.request, "refused", message.code)
        self._fail(message.request, error)

    # --- ends ---------------------------------------------------------------------------------------------------

    def _admitted(self, message: Admitted) -> None:
        running = self.running.get(message.request)
        if running is None:
            return
        running.admitted = True
        scheduler = self._streams.get(SCHEDULER)
        if scheduler is None or message.scheduler_epoch not in (0, scheduler.peer.epoch):
            # Released to a scheduler that was lost before this message came: nobody else will end it.
            self._traffic.gone(message.request, "lost", "scheduler_lost")
            self._fail(message.request, RequestError("scheduler_lost", "the scheduler was lost; try again"))

    def _choice_ended(self, sequence: int, choice: Choice, reason: str) -> None:
        running = choice.running
        del self._pump.choices[sequence]
        running.num_open -= 1
        if reason == "stop_string":
            self._send(SCHEDULER, Stopped(sequence, choice.num_tokens))
        if running.num_open == 0:
            self._forget(running)

    def _request_ended(self, message: RequestEnded) -> None:
        """The scheduler is done with a request. After a whole answer nothing is left here to end."""
        self._traffic.ended(message)
        if message.request not in self.running:
            return
        code = message.code or ("cancelled" if message.outcome == "cancelled" else "internal_error")
        sentence = message.message or f"the request ended as {message.outcome}"
        self._fail(message.request, RequestError(code, sentence))

    def _fail(self, request: int, failure: RequestError) -> None:
        running = self.running.get(request)
        if running is not None:
            self.cancel(running.answer, failure)

    def _fail_all(self, code: str, message: str, *, admitted: bool) -> None:
        for running in list(self.running.values()):
            if running.request in self.running and running.admitted == admitted:
                self.cancel(running.answer, RequestError(code, message))

    def _forget(self, running: Running) -> None:
        del self.running[running.request]
        del running.answer.running[running.request]
        for sequence in running.sequences:
            self._pump.choices.pop(sequence, None)
        if not self.running:
            self.on_idle()

    def _number(self, num_choices: int) -> int:
        """The id of the next request."""
        request = self.gateway << 32 | self._next
        self._next = (self._next + num_choices) % 2**32
        return request

    def _send(self, service: str, message: Submit | InvalidRequest | Cancel | Stopped) -> None:
        stream = self._streams.get(service)
        if stream is not None:
            stream.send(message)


def _ignore() -> None:
    """Nobody asked to be told."""
