"""The shell around AdmissionCore: streams in and out, payloads of what waits, the watch on the policy file.

Owns the requests' payloads until they are released; never looks into their tokens.
"""

import asyncio
import logging
import secrets
import time
from pathlib import Path

import msgspec

from policies.admission.backlog import queued_by_class
from policies.admission.core import AdmissionCore
from policies.admission.recovery import state_of
from policies.admission.saved import Saved
from policies.commands import (
    Adjust,
    CancelReleased,
    Command,
    Counted,
    Queue,
    Refuse,
    Release,
    Reserve,
    Resume,
    Settle,
    Strand,
    Withdraw,
)
from policies.events import CancelRequested, CapacityChanged, Invalid, PrefixesFound, RequestFinished, Restored
from services.admission.answers import admitted, arrived, queued, refused
from services.admission.followed_revisions import FollowedRevisions
from services.admission.history import History
from services.admission.journal import Journal
from services.admission.metrics import APPLIED, REJECTED, AdmissionMetrics
from services.admission.policy_files import PolicyFile, PolicyRevisions, first_document
from services.admission.reports import Reports
from services.admission.scheduler_side import LOST, SchedulerSide
from services.admission.sent_again import SentAgain
from services.admission.store import Kept
from services.admission.stores import store_of
from services.epochs import first_epoch
from services.health import process_name
from services.pump import Pump, open_event_log
from services.runtime import describe, gateway_number, open_link, open_listener, until_so
from services.settings import Deployment
from services.telemetry.metrics import Family
from services.telemetry.reporting import Reporting
from services.ticking import TELL_S, Ticker
from services.transport import Identity, Link, Listener, Stream
from services.troubles import Troubles
from services.wire import (
    Admitted,
    AnyMessage,
    Cancel,
    Capacity,
    Dispatch,
    Holds,
    InvalidRequest,
    PolicyAbort,
    PolicyCommit,
    PolicyNow,
    PolicyPrepare,
    PolicyPrepared,
    Queued,
    Refused,
    RequestEnded,
    Submit,
    Usage,
)
from services.wire_operator import ReportAsked
from services.wire_parts import Levels

ADMISSION, OPERATOR = "admission", "operator"
"""Somebody at a shell, who asks and looks on."""

log = logging.getLogger(__name__)


class Waiting(msgspec.Struct):
    """A request that was not released yet."""

    submit: Submit
    queued_ns: int


class AdmissionService:
    """One admission process: listens for gateways, keeps a link to the scheduler. Also the receiver of both."""

    def __init__(self, deployment: Deployment, replica: int = 0) -> None:
        self.name = process_name(ADMISSION, replica)
        self._deployment = deployment
        self._replica = replica
        self._core = AdmissionCore()
        self._troubles = Troubles()
        event_log = open_event_log(deployment, self.name, self._troubles)
        self._pump = Pump(self._core, self._perform, event_log=event_log, check=deployment.check)
        self._history = History(deployment.data, self._troubles)
        self._proposed = PolicyRevisions(deployment.policy, self._apply, self._rejected)
        self._followed = FollowedRevisions(deployment.policy, self._pump.apply)
        self._revisions: PolicyRevisions | FollowedRevisions = self._followed if replica else self._proposed
        self._file = PolicyFile(Path(deployment.policy), self._proposed.saved, self._proposed.unusable)
        self._waiting: dict[int, Waiting] = {}
        self._gateways: dict[int, Stream] = {}
        self._store = store_of(deployment, str(replica), self._pump.handle, self._core.queue, self._troubles)
        self._reports = Reports(self._core, self._pump, self._store)
        self._metrics = AdmissionMetrics(self._core)
        self._pump.observers.append(self._metrics.look)
        # Several may share a store: each is another instance, and so is each start.
        self._reporting = Reporting(
            deployment.telemetry, self.name, secrets.token_hex(4), self._families, troubles=self._troubles
        )
        self._journal = Journal(self._store, Saved(self._core), self._kept, self._troubles)
        self._pump.observers.append(self._journal.observe)
        self._scheduler = SchedulerSide(
            self._pump.handle,
            self._journal.settled,
            self._set_capacity,
            deployment.streams.lease_s,
            deployment.streams.resume_s,
        )
        self._again = SentAgain(self._core, self._pump.handle, self._gateways, self._submitted, self._scheduler)
        self._capacity = Capacity(num_executors=0, kv_tokens=0, max_sequence_tokens=0, resumes=True)
        self._listener: Listener | None = None
        self._ticker = Ticker(TELL_S, self._tell_levels)
        self._links: list[Link] = []
        self._beginning: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the policy, listen for gateways, connect to the scheduler.

        Raises:
            StartError: the policy cannot be read or used, or the store belongs to somebody else.
        """
        if self._replica:
            first = self._deployment.streams.admissions[0]
            self._links.append(open_link(self._deployment, first, self._identity, self))
            # The first process may come later, and this one must hear signals meanwhile.
            self._beginning = asyncio.get_running_loop().create_task(self._follow())
            self._beginning.add_done_callback(lambda task: task.cancelled() or task.result())
            return
        document = first_document(self._file)
        kept = await self._store.open()
        self._proposed.first(document, self._history.first(document))
        await self._begin(kept)
        self._file.start()

    async def _follow(self) -> None:
        kept = await self._store.open()
        await self._followed.begun.wait()
        await self._begin(kept)

    async def _begin(self, kept: Kept) -> None:
        self._restore(kept)
        self._journal.start()
        await self._reporting.start()
        streams = self._deployment.streams
        address = streams.admissions[self._replica]
        self._listener = await open_listener(self._deployment, address, ADMISSION, self, str(self._replica))
        self._links.append(open_link(self._deployment, streams.scheduler, self._identity, self))
        self._ticker.start()

    @property
    def _identity(self) -> Identity:
        instance = str(self._replica)
        return Identity(ADMISSION, instance, first_epoch(self._deployment.data, ADMISSION, instance))

    def not_ready(self) -> str:
        """Ready when the scheduler has an executor."""
        if not self._revisions.revision:
            return "no policy: the first admission process cannot be reached"
        if self._scheduler.stream is None:
            return "no scheduler"
        return "" if self._capacity.num_executors else "no executor"

    async def drain(self) -> None:
        """Serve until nothing waits or runs, or for `http.drain_s`: gateways give what waits then to a successor."""
        await until_so(lambda: not (self._waiting or self._core.ledger.in_flight), self._deployment.http.drain_s)

    async def stop(self) -> None:
        """Close everything. What waits is left to a successor, to whom the gateways send it again."""
        self._again.leave()
        await self._reporting.stop()
        self._ticker.close()
        self._file.stop()
        self._revisions.stop()
        if self._listener is not None:
            await self._listener.close()
        if self._beginning is not None:
            self._beginning.cancel()
        for link in self._links:
            await link.close()
        self._scheduler.close()
        self._reports.close()
        self._pump.close()
        await self._journal.close()
        await self._store.close()
        self._history.close()

    # --- streams --------------------------------------------------------------------------------------------------

    def opened(self, stream: Stream) -> None:
        """A gateway or the scheduler is there."""
        log.info("%s connected", describe(stream))
        if stream.peer.service == "scheduler":
            self._scheduler.opened(stream)
        elif (gateway := gateway_number(stream)) is not None:
            self._gateways[gateway] = stream
            stream.send(self._capacity)
            self._again.opened(gateway)
        elif stream.peer.service == OPERATOR:
            return
        elif stream.peer.service != ADMISSION:
            log.warning("%s has nothing to do here", describe(stream))
            stream.close()
            return
        self._revisions.joined(stream)

    def closed(self, stream: Stream, reason: str) -> None:
        """What a gone gateway had waiting is withdrawn; without the scheduler nothing is released."""
        log.info("%s disconnected: %s", describe(stream), reason)
        if stream.peer.service == "scheduler":
            self._revisions.left(stream)
            self._scheduler.closed()
        elif (gateway := gateway_number(stream)) is not None:
            del self._gateways[gateway]
            self._revisions.left(stream)
            self._again.closed(gateway, self._waiting)
        elif stream.peer.service == ADMISSION:
            self._revisions.left(stream)

    def stalled(self, stream: Stream) -> None:
        """Nothing here is large: the scheduler is the one that leaves out a gateway's sequences."""
        log.warning("%s does not read", describe(stream))

    def resumed(self, stream: Stream) -> None:
        """It reads again."""
        log.info("%s reads again", describe(stream))

    def received(self, stream: Stream, message: AnyMessage) -> None:
        """Messages become events."""
        match message:
            case RequestEnded() if (gateway := gateway_number(stream)) is not None:
                # The scheduler is lost, and its client has all of it: what the gateway counted is what it is charged.
                ended = RequestFinished(message.request, message.output_tokens, message.outcome, message.attempt)
                if message.request >> 32 == gateway:
                    if message.cached_tokens:
                        self._pump.handle(PrefixesFound([(message.request, message.cached_tokens)]))
                    self._pump.handle(ended)
            case Usage() | RequestEnded() | Holds() | Capacity():
                self._scheduler.received(stream, message)
            case Submit():
                self._again.came(message)
            case InvalidRequest():
                self._pump.handle(Invalid(message.request, message.tenant, message.project, message.key, message.tier))
            case Cancel():
                self._again.cancelled(message.request)
                self._pump.handle(CancelRequested(message.request, message.reason))
            case PolicyPrepared():
                self._revisions.prepared(stream, message)
            case PolicyPrepare() | PolicyCommit() | PolicyAbort() | PolicyNow() if self._replica:
                self._followed.received(stream, message)
            case ReportAsked():
                self._reports.asked(stream, message)
            case _:
                log.warning("%s sent a %s, which means nothing here", describe(stream), type(message).__name__)

    def _submitted(self, submit: Submit) -> None:
        self._waiting[submit.request] = Waiting(submit, time.monotonic_ns())
        self._pump.handle(arrived(submit, self._again.waited_s(submit)))
        if submit.cached_tokens:
            self._pump.handle(PrefixesFound([(submit.request, submit.cached_tokens)]))
        if submit.resent and submit.request in self._core.ledger.in_flight:
            self._waiting.pop(submit.request, None)  # it was no news

    def _restore(self, kept: Kept) -> None:
        if kept.rows:
            self._pump.handle(Restored(state_of(kept.rows)))
            forgot = "; counters are too old to be of use" if self._core.recovery.forgot_counters else ""
            log.info("going on with %d requests in flight%s", len(self._core.ledger.in_flight), forgot)
        else:
            log.info("the store has nothing of an earlier process: counters begin equal")
        self._scheduler.begin(kept)

    def _kept(self, epoch: int, number: int) -> None:
        self._scheduler.kept(epoch, number)

    def _set_capacity(self, capacity: Capacity) -> None:
        self._again.agreed()
        self._capacity = msgspec.structs.replace(capacity, resumes=True)
        for gateway in self._gateways.values():
            gateway.send(self._capacity)
        num_admissions = len(self._deployment.streams.admissions)
        self._pump.handle(
            CapacityChanged(
                capacity.num_executors, capacity.kv_tokens, capacity.max_sequence_tokens, num_admissions=num_admissions
            )
        )

    def _tell_levels(self) -> None:
        if self._gateways and self._pump.revision:
            levels = Levels(queued=queued_by_class(self._core), troubles=self._troubles.sentences)
            told = msgspec.structs.replace(self._capacity, levels=levels)
            for gateway in self._gateways.values():
                gateway.send(told)

    # --- policy ---------------------------------------------------------------------------------------------------

    def _apply(self, revision: int, document: bytes) -> None:
        if self._pump.revision:
            self._history.applied(revision, document)
            self._metrics.reloaded(APPLIED)
        self._pump.apply(revision, document)

    def _rejected(self, revision: int, document: bytes, why: str) -> None:
        self._history.rejected(revision, document, why)
        self._metrics.reloaded(REJECTED)
        self._file.forget()

    async def _families(self) -> list[Family]:
        return self._metrics.families(self._pump.revision)

    # --- commands -------------------------------------------------------------------------------------------------

    def _perform(self, command: Command) -> None:
        match command:
            case Release() | Resume():
                self._release(command)
            case Strand():
                self._again.stranded(command.request, command.attempt)
            case Queue():
                self._to_gateway(command.request, queued(command))
            case Refuse():
                self._refuse(command)
            case Counted():
                self._to_gateway(
                    command.request,
                    Admitted(command.request, "", self._revisions.revision, 0, 0, limits=command.limits),
                )
            case Withdraw():
                del self._waiting[command.request]
            case CancelReleased():
                self._scheduler.send(Cancel(command.request, command.reason))
            case Settle():
                self._settle(command)
            case Reserve():
                self._store.reserve(command.request, command.items)
            case Adjust():
                self._store.adjust(command.request, command.items)
            case _:
                raise TypeError(f"admission cannot perform a {type(command).__name__}")

    def _release(self, command: Release | Resume) -> None:
        waiting = self._waiting.pop(command.request)
        released_ns = time.monotonic_ns()
        self._scheduler.send(
            Dispatch(
                submit=waiting.submit,
                slo_class=command.slo_class,
                waited_s=command.waited_s,
                gateway=command.request >> 32,
                queued_ns=waiting.queued_ns,
                released_ns=released_ns,
            )
        )
        told = admitted(command, self._revisions.revision, self._scheduler.epoch, waiting.submit.attempt)
        told.queued_ns, told.released_ns = waiting.queued_ns, released_ns
        self._to_gateway(command.request, told)

    def _refuse(self, command: Refuse) -> None:
        # Of an invalid request nothing waits here.
        self._waiting.pop(command.request, None)
        self._to_gateway(command.request, refused(command))

    def _settle(self, command: Settle) -> None:
        log.debug("request %d %s after %d tokens", command.request, command.outcome, command.output_tokens)
        if command.outcome == LOST:
            self._scheduler.settled_as_lost(command.request)
            if not command.output_tokens:
                # Its gateway has been told that it was released, and would wait for a scheduler that never got it.
                sentence = "the request was lost on its way to the scheduler; try again"
                self._to_gateway(command.request, RequestEnded(command.request, "error", 0, "admission_lost", sentence))

    def _to_gateway(self, request: int, message: Refused | Queued | Admitted | RequestEnded) -> None:
        gateway = self._gateways.get(request >> 32)
        if gateway is not None:
            gateway.send(message)


def build(deployment: Deployment, replica: int = 0) -> AdmissionService:
    """The service of this deployment; of several, the one with this number.

    Raises:
        StartError: the event log cannot be written.
    """
    return AdmissionService(deployment, replica)
