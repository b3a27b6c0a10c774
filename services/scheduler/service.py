"""The shell around SchedulerCore: streams of admission, gateways and executors, token payloads, frames.

Owns which stream is which. Every decision is the core's; messages become events, commands become messages.
"""

import logging
import time

import msgspec

from policies.commands import Abandon, Command, Deliver, Finish, Forget, StartStep
from policies.document.compile import compile_scheduling
from policies.document.loading import load_live_policy
from policies.document.problems import PolicyError
from policies.events import (
    CancelRequested,
    ExecutorJoined,
    ExecutorLost,
    GatewayLost,
    GatewayResumed,
    GatewayStalled,
    Released,
    StepLimits,
    StopFound,
)
from policies.scheduling.core import SchedulerCore
from services.pump import Pump, open_event_log
from services.runtime import describe, gateway_number, open_listener, until_so
from services.scheduler.admissions import ADMISSION, Admissions
from services.scheduler.delivery import Delivery
from services.scheduler.early_cancels import EarlyCancels
from services.scheduler.executors import ResultError, StepTokens
from services.scheduler.fleet import Fleet
from services.scheduler.metrics import SchedulerMetrics
from services.scheduler.mirrors import OPERATOR, Mirrors
from services.scheduler.samples import Samples
from services.scheduler.sequences import INT32_BYTES, Sequences, fault_of, output_tokens_of
from services.settings import Deployment
from services.telemetry.metrics import Family
from services.telemetry.reporting import Reporting
from services.ticking import TELL_S, Ticker
from services.traffic.rows import FLEETS, SCHEDULER, STEPS
from services.traffic.store import open_store
from services.transport import Listener, Stream
from services.troubles import Troubles
from services.wire import (
    AnyMessage,
    Cancel,
    Dispatch,
    EndsKept,
    PolicyAbort,
    PolicyCommit,
    PolicyNow,
    PolicyPrepare,
    PolicyPrepared,
    RequestEnded,
    Stopped,
)
from services.wire_operator import MirrorAsked
from services.wire_steps import ExecutorReady, ForgetMessage, StepFailed, StepResult

log = logging.getLogger(__name__)


class SchedulerService:
    """One scheduler process: listens for admission, gateways and executors. Also the receiver of their streams."""

    name = "scheduler"

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        core = self._core = SchedulerCore()
        self._troubles = Troubles()
        self._pump = Pump(
            core,
            self._perform,
            event_log=open_event_log(deployment, "scheduler", self._troubles),
            check=deployment.check,
        )
        self._mirrors = Mirrors(core, self._pump, deployment.streams.max_frame_bytes)
        self._sequences = Sequences()
        self._gateways: dict[int, Stream] = {}
        self._fleet = Fleet()
        self._admissions = Admissions(self._sequences, self._troubles)
        self._early_cancels = EarlyCancels()
        self._prepared: tuple[int, bytes] | None = None
        self._returned: StepTokens | None = None
        """The step whose end the core is hearing of."""
        self._listener: Listener | None = None
        self._samples = Samples(None)
        self._metrics = SchedulerMetrics()
        self._reporting = Reporting(deployment.telemetry, self.name, "0", self._families, troubles=self._troubles)
        self._ticker = Ticker(TELL_S, self._tell_levels)

    async def start(self) -> None:
        """Listen; raises `StartError` or `AddressError`."""
        data, traffic = self._deployment.data, self._deployment.traffic
        self._samples = Samples(open_store(data, SCHEDULER, (STEPS, FLEETS), traffic, self._troubles))
        self._listener = await open_listener(self._deployment, self._deployment.streams.scheduler, self.name, self)
        await self._reporting.start()
        self._ticker.start()

    def not_ready(self) -> str:
        """Ready with a policy and an executor."""
        if not self._pump.revision:
            return "no policy yet: admission has not connected"
        return "" if self._fleet.executors else "no executor"

    async def drain(self) -> None:
        """Serve until nothing runs, or for `http.drain_s`: what runs then goes on in a successor, if there is one."""
        await until_so(lambda: not self._core.requests, self._deployment.http.drain_s)

    async def stop(self) -> None:
        """Close everything."""
        self._ticker.close()
        await self._reporting.stop()
        if self._listener is not None:
            await self._listener.close()
        self._mirrors.close()
        self._pump.close()
        self._samples.close()

    # --- streams --------------------------------------------------------------------------------------------------

    def opened(self, stream: Stream) -> None:
        """Somebody is there. An executor counts only when it says that it is ready."""
        log.info("%s connected", describe(stream))
        if stream.peer.service == ADMISSION:
            self._admissions.opened(stream, self._fleet.capacity)
        elif (gateway := gateway_number(stream)) is not None:
            self._gateways[gateway] = stream
            stream.send(self._fleet.capacity)
        elif stream.peer.service not in ("executor", OPERATOR):
            log.warning("%s has nothing to do here", describe(stream))
            stream.close()

    def closed(self, stream: Stream, reason: str) -> None:
        """A gone gateway's sequences are cancelled, a gone executor's recomputed; without admission all goes on."""
        log.info("%s disconnected: %s", describe(stream), reason)
        if stream.peer.service == ADMISSION:
            self._admissions.closed(stream)
        elif stream.peer.service == OPERATOR:
            self._mirrors.leave(stream)
        elif (gateway := gateway_number(stream)) is not None:
            del self._gateways[gateway]
            self._pump.handle(GatewayLost(gateway))
        elif (executor := self._fleet.leave(stream, reason)) is not None:
            self._pump.handle(ExecutorLost(executor.number))
            self._tell_capacity()

    def stalled(self, stream: Stream) -> None:
        """A gateway that does not read is left out of plans; an operator who does not is shown no more."""
        log.warning("%s does not read", describe(stream))
        self._mirrors.end(stream, "what the scheduler does comes faster than it is read")
        if (gateway := gateway_number(stream)) is not None:
            self._pump.handle(GatewayStalled(gateway))

    def resumed(self, stream: Stream) -> None:
        """It reads again."""
        log.info("%s reads again", describe(stream))
        if (gateway := gateway_number(stream)) is not None:
            self._pump.handle(GatewayResumed(gateway))

    def received(self, stream: Stream, message: AnyMessage) -> None:
        """Messages become events."""
        match message:
            case StepResult():
                self._step_ended(stream, message)
            case Dispatch() if stream.peer.service == ADMISSION:
                self._dispatched(stream, message)
            case Cancel() if message.request in self._sequences:
                self._pump.handle(CancelRequested(message.request, message.reason))
            case Cancel():
                self._early_cancels.came(message.request, message.reason)
            case EndsKept() if stream.peer.service == ADMISSION:
                self._admissions.kept(stream, message.number, self._fleet.capacity)
            case Stopped():
                self._pump.handle(StopFound(message.sequence, message.output_tokens))
            case ExecutorReady():
                self._executor_ready(stream, message)
            case StepFailed():
                self._fleet.trouble = f"it failed in step {message.step}: {message.message}"
                log.error("%s: %s", describe(stream), self._fleet.trouble)
                stream.close()
            case PolicyNow():
                if error := _problems(message.document):
                    log.error("%s: revision %d cannot be used: %s", describe(stream), message.revision, error)
                else:
                    self._pump.apply(message.revision, message.document)
            case PolicyPrepare():
                error = _problems(message.document)
                self._prepared = None if error else (message.revision, message.document)
                stream.send(PolicyPrepared(message.revision, error))
            case PolicyCommit():
                if self._prepared is not None and self._prepared[0] == message.revision:
                    self._pump.apply(*self._prepared)
                self._prepared = None
            case PolicyAbort():
                self._prepared = None
            case MirrorAsked():
                self._mirrors.begin(stream, message.duration_s)
            case _:
                log.warning("%s sent a %s, which means nothing here", describe(stream), type(message).__name__)

    def _dispatched(self, stream: Stream, dispatch: Dispatch) -> None:
        submit = dispatch.submit
        if submit.request in self._sequences:
            self._admissions.dispatched_again(stream, submit)
            return
        if self._sequences.overlap(submit.request, len(submit.sampling)):
            log.error("%s sent request %d, whose choices are another's", describe(stream), submit.request)
            stream.close()
            return
        self._admissions.dispatched(stream, dispatch)
        if (ended := self._ended_at_once(dispatch)) is not None:
            self._admissions.ended(ended)
            if dispatch.gateway in self._gateways:
                self._gateways[dispatch.gateway].send(ended)
            return
        prompt_keys = self._sequences.add(dispatch, time.monotonic_ns())
        self._pump.handle(
            Released(
                request=submit.request,
                slo_class=dispatch.slo_class,
                prompt_tokens=len(submit.prompt) // INT32_BYTES,
                max_output_tokens=submit.max_output_tokens,
                num_choices=len(submit.sampling),
                waited_s=dispatch.waited_s,
                gateway=dispatch.gateway,
                owner=submit.tenant,
                prompt_keys=prompt_keys,
                key_tokens=self._sequences.salt.key_tokens,
                made_tokens=tuple(len(output) // INT32_BYTES for output in submit.outputs),
                ended=tuple(submit.ended),
            )
        )

    def _ended_at_once(self, dispatch: Dispatch) -> RequestEnded | None:
        """How a released request ends that is not to be computed; None: it is."""
        submit = dispatch.submit
        outcome, code, message = "cancelled", "", ""
        if dispatch.gateway not in self._gateways:
            # Its reader left while the request waited: computing it would be for nobody.
            code, message = "gateway_lost", "its gateway is gone"
        elif (reason := self._early_cancels.take(submit.request)) is not None:
            code, message = reason, "it was cancelled before it came"
        elif message := fault_of(submit):
            outcome, code = "error", "internal_error"
        else:
            return None
        return RequestEnded(submit.request, outcome, output_tokens_of(submit), code, message)

    def _executor_ready(self, stream: Stream, ready: ExecutorReady) -> None:
        info = ready.info
        if self._fleet.of(stream) is not None:
            log.error("%s is ready twice on one stream", describe(stream))
            stream.close()
            return
        executor = self._fleet.join(stream, info)
        self._sequences.salt.follow([each.block_tokens for each in self._fleet.infos])
        log.info(
            "executor %d: %s on %s, %d blocks of %d tokens",
            executor.number,
            info.model,
            info.device,
            info.num_blocks,
            info.block_tokens,
        )
        limits = self._deployment.watchdog
        self._pump.handle(
            ExecutorJoined(
                executor=executor.number,
                num_blocks=info.num_blocks,
                block_tokens=info.block_tokens,
                max_sequence_tokens=info.max_sequence_tokens,
                max_steps_in_flight=info.max_steps_in_flight,
                copies_blocks=info.copies_blocks,
                step_limits=StepLimits(limits.step_s, limits.step_times, limits.first_step_s),
            )
        )
        self._tell_capacity()

    def _step_ended(self, stream: Stream, result: StepResult) -> None:
        executor = self._fleet.of(stream)
        if executor is None:
            log.warning("%s sent a step result before it was ready", describe(stream))
            return
        try:
            self._returned, event = executor.finish(result)
        except ResultError as error:
            log.error("closing %s: %s", describe(stream), error)  # noqa: TRY400  the sentence says it all
            stream.close()
            return
        self._samples.step_ended(self._returned)
        self._metrics.step_ended(self._returned, self._core.rules.token_budget)
        self._sequences.note_chunks(self._returned)
        plan = self._returned.plan
        if keys := self._sequences.keys_reached(plan.filling, plan.filled_to):
            event = msgspec.structs.replace(event, keys=keys)
        self._pump.handle(event)
        self._returned = None

    async def _families(self) -> list[Family]:
        return self._metrics.families(self._core.snapshot(), self._pump.revision)

    def _tell_capacity(self) -> None:
        self._samples.fleet_changed(self._fleet.infos)
        capacity = self._fleet.capacity
        for gateway in self._gateways.values():
            gateway.send(capacity)
        self._admissions.tell(capacity)

    def _tell_levels(self) -> None:
        if not self._gateways or not self._pump.revision:
            return
        block_tokens = next((each.block_tokens for each in self._fleet.infos), 0)
        levels = self._metrics.levels(self._core.snapshot(), block_tokens)
        levels.troubles = self._troubles.sentences
        told = msgspec.structs.replace(self._fleet.capacity, levels=levels)
        for gateway in self._gateways.values():
            gateway.send(told)

    # --- commands -------------------------------------------------------------------------------------------------

    def _perform(self, command: Command) -> None:
        match command:
            case StartStep():
                executor = self._fleet.executors.get(command.executor)
                if executor is not None:
                    planned = self._core.executors[command.executor]
                    starts = zip(command.plan.starts, command.plan.cached, strict=True)
                    executor.start(
                        command,
                        [self._sequences.start(*start) for start in starts],
                        token_budget=self._core.rules.token_budget,
                        decodes_of_stage=planned.decodes_of_stage,
                        kv_use=planned.blocks.use,
                    )
            case Deliver():
                self._deliver(command)
            case Finish():
                self._finish(command)
            case Abandon():
                self._abandon(command)
            case Forget():
                executor = self._fleet.executors.get(command.executor)
                if executor is not None:
                    executor.stream.send(ForgetMessage(command.released))
            case _:
                raise TypeError(f"the scheduler cannot perform a {type(command).__name__}")

    def _deliver(self, command: Deliver) -> None:
        step = self._returned
        if step is None or (step.executor, step.plan.step) != (command.executor, command.step):
            raise RuntimeError(f"step {command.step} of executor {command.executor} is not the one that came back")
        delivery = Delivery(command, step, self._sequences)
        for number, frame in delivery.frames():
            gateway = self._gateways.get(number)
            if gateway is not None:
                gateway.send(frame)
        self._admissions.produced(delivery.charged, delivery.prefix_hits)

    def _abandon(self, command: Abandon) -> None:
        executor = self._fleet.give_up(command.executor, command.reason)
        if executor is None:
            return
        log.error("%s; its sequences are computed elsewhere, or when one joins", self._fleet.trouble)
        self._metrics.abandoned()
        # What it sends when it wakes meets a closed stream; what it is then is another executor.
        executor.stream.close()
        self._tell_capacity()

    def _finish(self, command: Finish) -> None:
        output_tokens = 0 if self._sequences.by_id[command.request].pooling else command.output_tokens
        ended = RequestEnded(command.request, command.outcome, output_tokens, command.code, command.message)
        self._admissions.ended(ended)
        gateway = self._gateways.get(command.request >> 32)
        if gateway is not None:
            gateway.send(msgspec.structs.replace(ended, measured=self._sequences.measured(command.request)))
        self._sequences.remove(command.request)


def build(deployment: Deployment) -> SchedulerService:
    """The service of this deployment.

    Raises:
        StartError: the event log cannot be written.
    """
    return SchedulerService(deployment)


def _problems(document: bytes) -> str:
    try:
        compile_scheduling(load_live_policy(document))
    except PolicyError as error:
        return str(error)
    return ""
