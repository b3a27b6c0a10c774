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
from services.gateway.frames import Pump, fits
from services.gateway.neighbours import ADMISSION, SCHEDULER, Neighbours
from services.gateway.policy import Revisions
from services.gateway.questions import Questions
from services.gateway.resuming import EXECUTOR, Resuming
from services.gateway.running import Running
from services.gateway.streams import Answer, Choice
from services.gateway.told import Told
from services.gateway.tracing import Origin, Tracing
from services.gateway.traffic import Traffic
from services.streams import Stream
from services.traffic.rows import RequestRow
from services.troubles import Troubles
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
COUNTED_S = 1.0
"""How long the answer to a wrong request waits to be counted: a busy admission must not hold it up for ever."""

Counted = tuple[Told, RequestError | None]

log = logging.getLogger(__name__)


class Texts(Protocol):
    """Where detokenisers come from."""

    vocabulary_size: int

    def stream(self) -> TextStream:
        """A fresh one."""


class Backend:
    """Receiver of both streams."""

    def __init__(self, texts: Texts, record: Callable[[RequestRow], None], tracing: Tracing, resume_s: float) -> None:
        self.gateway = secrets.randbits(GATEWAY_BITS)
        """Upper half of every request id: tells this gateway from others and from an earlier start of itself."""
        self.texts = texts
        self.revisions = Revisions()
        self.capacity: Capacity | None = None
        self.max_sequence_tokens = 0
        """Of the executors that there are, or were last; 0: there were none."""
        self.levels: dict[str, Levels] = {}
        """How full each service is, as it said last."""
        self.troubles = Troubles()
        """Of this process."""
        self.running: dict[int, Running] = {}
        self._traffic = Traffic(record)
        self._next = 0
        self._unheard: dict[int, tuple[Answer, Stream | None]] = {}
        """As `Answer.unheard`, of all, with the admission process that it was given to."""
        self._counting: dict[int, tuple[asyncio.Future[Counted], Stream]] = {}
        self.tracing = tracing
        self._pump = Pump(self._choice_ended, tracing)
        self._neighbours = Neighbours()
        self._resuming = Resuming(self._neighbours, self.running, self._hand_on, self._fail, resume_s)
        self.questions = Questions(self._neighbours.admission)

    # --- what the HTTP side asks --------------------------------------------------------------------------------

    @property
    def num_discarded(self) -> int:
        """Tokens that came for nobody, since the start."""
        return self._pump.num_discarded

    @property
    def num_resumed(self) -> int:
        """Requests that went on at another scheduler, since the start."""
        return self._resuming.num_resumed

    @property
    def degraded(self) -> dict[str, list[str]]:
        """What each service cannot keep at the moment, `what: sentence` each; those without a trouble are left out."""
        said = {"gateway": self.troubles.sentences, **{name: each.troubles for name, each in self.levels.items()}}
        return {name: troubles for name, troubles in said.items() if troubles}

    def missing(self) -> list[str]:
        """What keeps new requests from being served, in words; empty when nothing does."""
        reasons = self._neighbours.missing()
        if self.revisions.now is None:
            reasons.append("no policy revision received")
        if self.capacity is None or self.capacity.num_executors == 0:
            trouble = self.capacity.trouble if self.capacity is not None else ""
            reasons.append(f"no executor is ready: {trouble}" if trouble else "no executor is ready")
        return reasons

    def check_open(self) -> None:
        """Whether a request can be handed on, now or soon: whoever was there a moment ago may be back in time.

        Raises:
            RequestError: a stream is down or nothing is known of the executors yet.
        """
        briefly_away = self._resuming.is_briefly_away
        if not self._neighbours.has_admission and not briefly_away(ADMISSION):
            raise RequestError("admission_lost", "admission cannot be reached at the moment; try again")
        if self._neighbours.scheduler is None and not briefly_away(SCHEDULER):
            raise RequestError("no_capacity", "the scheduler cannot be reached at the moment; try again")
        has_executor = self.capacity is not None and self.capacity.max_sequence_tokens > 0
        if not (has_executor or (self.max_sequence_tokens and briefly_away(EXECUTOR))):
            raise RequestError("no_capacity", "no executor is ready yet; try again")

    def submit(self, submits: Sequence[Submit], answer: Answer, stops: Sequence[str], origin: Origin) -> None:
        """Give each Submit its id and hand it on; the answer gets their choices in this order."""
        for submit in submits:
            submit.request = request = self._number(len(submit.sampling))
            running = Running(submit, answer)
            self.running[request] = answer.running[request] = running
            answer.unheard[request] = None
            for sequence in running.sequences:
                self._pump.choices[sequence] = answer.add(running, self.texts.stream(), stops)
        answer.on_written = self.tracing.written
        self.tracing.begin(submits, answer, origin)
        now = self.revisions.now
        admission = self._neighbours.admission()
        for submit in submits:
            self._traffic.arrived(submit, 0 if now is None else now.revision)
            running = self.running[submit.request]
            if admission is None:
                self._unheard[submit.request] = (answer, None)
                self._resuming.wait(running)
            else:
                self._hand_on(running, admission, submit)

    async def count_invalid(self, tenant: Tenant, key: HashedKey) -> Counted:
        """Have a wrong request counted against its caller's limits.

        Returns what is left of them, which is nothing where admission cannot say it in time, and the refusal of a
        caller who is over one.
        """
        admission = self._neighbours.admission()
        if admission is None:
            return Told(), None
        request = self._number(1)
        counted: asyncio.Future[Counted] = asyncio.get_running_loop().create_future()
        self._counting[request] = (counted, admission)
        self._send(admission, InvalidRequest(request, tenant.name, key.project, key.id, tenant.tier))
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
            self._send(running.admission, cancel)
            self._send(self._neighbours.scheduler, cancel)
        answer.fail(failure)

    def close(self) -> None:
        """Wait for nobody any more."""
        self._resuming.close()

    def cancel_all(self, failure: RequestError) -> None:
        """End everything."""
        for running in list(self.running.values()):
            self.cancel(running.answer, failure)

    # --- Receiver -----------------------------------------------------------------------------------------------

    def opened(self, stream: Stream) -> None:
        """A stream is up."""
        self._neighbours.opened(stream)
        self._resuming.opened(stream)

    def stalled(self, stream: Stream) -> None:
        """A service does not read."""
        self._neighbours.stalled(stream)

    def resumed(self, stream: Stream) -> None:
        """It reads again."""
        self._neighbours.resumed(stream)
        self._resuming.send_again()

    def closed(self, stream: Stream, reason: str) -> None:
        """A stream is down: what depended on it ends now."""
        if not self._neighbours.closed(stream):
            return
        self.levels.pop(stream.peer.service, None)
        log.warning("stream to %s lost: %s", stream.peer.service, reason)
        if stream.peer.service == ADMISSION:
            # Running requests go on without it; its backlog is gone.
            sentence = "admission was lost while the request waited; try again"
            self._resuming.admission_lost(stream, RequestError("admission_lost", sentence))
            unheard = [
                (request, by) for waiting in (self._unheard, self._counting) for request, (_, by) in waiting.items()
            ]
            for request, by in unheard:
                waiting = self.running.get(request)
                if by is stream and not (waiting is not None and waiting.is_parked):
                    self._heard(request)
        else:
            sentence = "the scheduler was lost while the request ran; try again"
            self._resuming.scheduler_lost(stream, RequestError("scheduler_lost", sentence))
            self._traffic.lost_but(self.running)

    def received(self, stream: Stream, message: AnyMessage) -> None:
        """A message of either service."""
        match message:
            case TokenFrame() if not fits(message, self.texts.vocabulary_size):
                log.error("%s sent tokens that the model does not have", stream.peer.service)
                stream.close()
            case TokenFrame():
                self._pump.deliver(message, stream.clock, stream.peer.epoch)
            case Queued():
                if message.request in self._unheard:
                    answering, _ = self._unheard[message.request]
                    answering.told.queued(message)
                if message.request in self.running:
                    self._resuming.heard(self.running[message.request])
            case Admitted():
                self._heard(message.request).admitted(message)
                begun = self.running.get(message.request)
                if not (message.attempt and begun is not None and begun.num_tokens):
                    # The way to the first token is told once.
                    self.tracing.let(message, stream.clock)
                self._admitted(stream, message)
            case Refused():
                self._refused(stream, message)
            case RequestEnded() if stream.peer.service == ADMISSION and self._resuming.stranded(stream, message):
                pass
            case RequestEnded():
                self._request_ended(message)
            case Capacity() if message.levels is not None:
                self.levels[stream.peer.service] = message.levels
            case Capacity():
                num_before = 0 if self.capacity is None else self.capacity.num_executors
                self.capacity = message
                self.max_sequence_tokens = message.max_sequence_tokens or self.max_sequence_tokens
                self._resuming.told(stream, message, num_before)
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
        counted = self._counted(request)
        if counted is not None:
            told = Told()
            counted.set_result((told, None))
            return told
        if request not in self._unheard:
            return Told()  # nobody waits for it any more
        answer, _ = self._unheard.pop(request)
        del answer.unheard[request]
        answer.wake()
        return answer.told

    def _refused(self, admission: Stream, message: Refused) -> None:
        error = RequestError(
            message.code, message.message, retry_after_s=message.retry_after_s, dimension=message.dimension
        )
        counted = self._counted(message.request)
        if counted is not None:
            told = Told()
            told.refused(message)
            counted.set_result((told, error))
            return
        running = self.running.get(message.request)
        if running is not None and self._resuming.refused(running, admission):
            if running.admitted:
                self._heard(message.request)
            return
        self._heard(message.request).refused(message)
        self._traffic.gone(message.request, "refused", message.code)
        self._fail(message.request, error)

    # --- ends ---------------------------------------------------------------------------------------------------

    def _admitted(self, admission: Stream, message: Admitted) -> None:
        running = self.running.get(message.request)
        if running is None or message.attempt != running.submit.attempt:
            return
        scheduler = self._neighbours.scheduler
        if scheduler is None or message.scheduler_epoch not in (0, scheduler.peer.epoch):
            failure = RequestError("scheduler_lost", "the scheduler was lost; try again")
            self._resuming.released_in_vain(running, admission, failure)
            if message.request not in self.running:
                self._traffic.gone(message.request, "lost", "scheduler_lost")
            return
        self._resuming.admitted(running)

    def _choice_ended(self, sequence: int, choice: Choice, reason: str) -> None:
        running = choice.running
        del self._pump.choices[sequence]
        running.num_open -= 1
        if reason == "stop_string":
            self._send(self._neighbours.scheduler, Stopped(sequence, choice.num_tokens))
        if running.num_open == 0:
            self._forget(running)
            self._resuming.finished(running)
            if running.submit.resent:
                # Should what was sent twice come there twice, nobody waits for it.
                self._send(self._neighbours.scheduler, Cancel(running.request, "finished"))
                if running.earlier and running.request in running.answer.unheard:
                    self._send(running.admission, Cancel(running.request, "finished"))

    def _request_ended(self, message: RequestEnded) -> None:
        """The scheduler is done with a request. After a whole answer nothing is left here to end."""
        self._traffic.ended(message)
        self._resuming.ended(message.request)
        if message.request not in self.running:
            return
        code = message.code or ("cancelled" if message.outcome == "cancelled" else "internal_error")
        sentence = message.message or f"the request ended as {message.outcome}"
        self._fail(message.request, RequestError(code, sentence))

    def _fail(self, request: int, failure: RequestError) -> None:
        running = self.running.get(request)
        if running is not None:
            self.cancel(running.answer, failure)

    def _forget(self, running: Running) -> None:
        del self.running[running.request]
        del running.answer.running[running.request]
        self._resuming.gone(running)
        for sequence in running.sequences:
            self._pump.choices.pop(sequence, None)

    def _number(self, num_choices: int) -> int:
        """The id of the next request."""
        request = self.gateway << 32 | self._next
        self._next = (self._next + num_choices) % 2**32
        return request

    def _counted(self, request: int) -> "asyncio.Future[Counted] | None":
        """Where a wrong request's count is waited for; None: nowhere (any more)."""
        if request not in self._counting:
            return None
        counted, _ = self._counting[request]
        return None if counted.done() else counted

    def _send(self, stream: Stream | None, message: Submit | InvalidRequest | Cancel | Stopped) -> None:
        """To a service, or whoever is in its place by now."""
        there = None if stream is None else self._neighbours.again(stream)
        if there is not None:
            there.send(message)

    def _hand_on(self, running: Running, admission: Stream, submit: Submit) -> None:
        self._resuming.handed_on(running, admission)
        if submit.attempt:
            self._traffic.goes_on(running.request, running.first_token_ns)
        if running.request in running.answer.unheard:
            self._unheard[running.request] = (running.answer, admission)
        admission.send(submit)
