"""The shell around an engine: blocking, one step after the other, no event loop.

A lost connection drops every sequence and connects again as a new epoch: the scheduler recomputes them. Torch is
imported by the engine's loader, in this process alone. Knows no tenant, no request and no policy.
"""

import logging
import os
import threading
import time
from collections import deque
from pathlib import Path

import numpy as np

from engine.interface import Engine, EngineError, EngineInfo, Step
from engine.load import load_engine
from engine.memory import amount
from policies.events import StepLimits
from services.blocking import BlockingStream
from services.epochs import first_epoch, place_name
from services.executor.checking import problem
from services.executor.departure import Departure, Stopped
from services.executor.metrics import ExecutorMetrics
from services.executor.wedge import Wedge
from services.framing import AddressError, Identity, StreamError
from services.loading import LoadingFile, loading_file
from services.pulse import BEAT_S, Pulse
from services.runtime import ReadyFile, StartError, certificates_of, read_secret
from services.settings import Deployment
from services.wire import AnyMessage
from services.wire_parts import LogprobColumns
from services.wire_steps import ExecutorReady, ForgetMessage, StepFailed, StepMessage, StepResult

FIRST_RETRY_S = 0.02
LAST_RETRY_S = 1.0
LONGEST_LOOK_S = 0.002
"""While a step computes, the next one is awaited this long, or half a step, before its result is."""

log = logging.getLogger(__name__)


def main(deployment: Deployment, pulse: int | None = None) -> int:
    """Load the engine and serve steps until told to stop; the exit status is 1 when the engine fails. `pulse`: the pipe
    for its signs of life.

    Raises:
        StartError: the checkpoint or the streams' secret cannot be used.
    """
    ready = ReadyFile(Path(deployment.run), "executor")
    loading = LoadingFile(loading_file(deployment.run))
    departure = Departure(deployment.http.drain_s)
    departure.heed_signals()
    try:
        try:
            engine = load_engine(deployment.model_folder, deployment.engine, loading.tell)
        except EngineError as error:
            raise StartError(str(error)) from error
        finally:
            loading.remove()
        ready.about = describe(engine.info)
        log.info("%s", ready.about)
        executor = Executor(engine, deployment, ready, departure)
        # Not before: to load may take minutes, and much of it lets no other thread run.
        heart = threading.Thread(target=_beat, args=(Pulse(ready.path, pulse), executor.wedge), daemon=True)
        heart.start()
        executor.metrics.start(deployment.telemetry, str(os.getpid()))
        try:
            executor.run()
        finally:
            executor.metrics.stop()
    except Stopped:
        log.info("stopped")
        return 0
    except EngineError as error:
        log.critical("the engine cannot go on: %s", error)
    finally:
        ready.remove()
    return 1


def describe(info: EngineInfo) -> str:
    """Two lines: what serves, and how much context it holds and why."""
    kv_tokens = info.num_blocks * info.block_tokens
    pool = f", {amount(info.kv_bytes)}; bounded by {info.kv_bound}" if info.kv_bytes else ""
    return (
        f"Engine: {info.architecture}, {info.num_parameters:,} parameters, {info.dtype}, on {info.device} with "
        f"{info.attention}\n"
        f"KV pool: {kv_tokens:,} tokens, {kv_tokens / info.max_sequence_tokens:.1f} sequences of "
        f"{info.max_sequence_tokens:,}{pool}"
    )


def _beat(pulse: Pulse, wedge: Wedge) -> None:
    """A step may take longer than a sign of life: another thread gives it, and ends the process when the step is one
    that never ends; nothing else could.
    """
    while not (why := wedge.found(time.monotonic())):
        pulse.beat()
        time.sleep(BEAT_S)
    log.critical("%s; this process ends", why)
    os._exit(1)


class Executor:
    """An engine and its connection to the scheduler."""

    def __init__(
        self, engine: Engine, deployment: Deployment, ready: ReadyFile, departure: Departure | None = None
    ) -> None:
        self._engine = engine
        self._deployment = deployment
        self._ready = ready
        self._departure = departure or Departure(deployment.http.drain_s)
        self._secret = read_secret(deployment)
        self._certificates = certificates_of(deployment)
        # Several may serve one scheduler, from a machine or a data folder each: with one name they would take each
        # other's place for ever.
        self._instance = place_name(deployment.data)
        self._epoch = first_epoch(deployment.data, "executor", self._instance)
        # On a CPU a step is computed within `launch`: to launch the next one first would only delay its result.
        self._depth = 1 if engine.info.device.startswith("cpu") else engine.info.max_steps_in_flight
        self._launched: deque[int] = deque()
        self._held: dict[int, None] = {}
        """Sequences the engine has state of."""
        self.metrics = ExecutorMetrics()
        limits = deployment.watchdog
        self.wedge = Wedge(StepLimits(limits.step_s, limits.step_times, limits.first_step_s))
        self._step_s = 2 * LONGEST_LOOK_S
        """How long the last step took."""

    def run(self) -> None:
        """Connect, serve, connect again.

        Raises:
            EngineError: the engine cannot go on; the scheduler was told.
            StartError: the scheduler's address cannot be used.
        """
        pause_s = FIRST_RETRY_S
        complaint = ""
        while True:
            self._ready.update("no scheduler")
            try:
                stream = self._connect()
            except AddressError as error:
                raise StartError(str(error)) from error
            except (OSError, StreamError) as error:
                if str(error) != complaint:
                    complaint = str(error)
                    log.info("no stream to %s: %s; trying again", self._deployment.streams.scheduler, complaint)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LAST_RETRY_S)
                continue
            pause_s, complaint = FIRST_RETRY_S, ""
            try:
                self._serve(stream)
            except (OSError, StreamError) as error:
                log.warning("lost the scheduler: %s", error)
            finally:
                stream.close()
            self._reset()
            self._departure.work_left(num_steps=0, num_sequences=0)

    def _connect(self) -> BlockingStream:
        streams = self._deployment.streams
        # Not by the clock: a process that was stopped for long and is woken must not seem newer than its successor.
        self._epoch += 1
        return BlockingStream.connect(
            streams.scheduler,
            Identity("executor", self._instance, self._epoch),
            self._secret,
            max_frame_bytes=streams.max_frame_bytes,
            silence_s=streams.silence_s,
            certificates=self._certificates,
            allow_plaintext=streams.allow_plaintext,
        )

    def _serve(self, stream: BlockingStream) -> None:
        stream.send(ExecutorReady(self._engine.info))
        self.wedge.stream = stream
        self._ready.update("")
        inbox: deque[AnyMessage] = deque()
        while True:
            inbox.extend(self._receive(stream, inbox))
            # Launch ahead of collecting, as far as the engine overlaps steps.
            while inbox and len(self._launched) < self._depth and not self._departure.is_due:
                self._take(stream, inbox.popleft())
            if self._launched:
                self._collect(stream)
            self._departure.work_left(num_steps=len(self._launched), num_sequences=len(self._held))

    def _receive(self, stream: BlockingStream, inbox: deque[AnyMessage]) -> list[AnyMessage]:
        if inbox:
            return []
        if not self._launched:
            return stream.wait()
        if len(self._launched) >= self._depth:
            return []
        # The scheduler answers the last result with the next plan: launched in time, the device never waits for it.
        return stream.poll(min(self._step_s / 2, LONGEST_LOOK_S))

    def _take(self, stream: BlockingStream, message: AnyMessage) -> None:
        match message:
            case StepMessage():
                self._launch(stream, message)
            case ForgetMessage():
                self._engine.forget(message.released)
                self._drop(message.released)
            case _:
                log.warning("the scheduler sent a %s, which means nothing here", type(message).__name__)

    def _launch(self, stream: BlockingStream, message: StepMessage) -> None:
        step = Step(
            step=message.step,
            sequences=np.frombuffer(message.sequences, np.int64),
            positions=np.frombuffer(message.positions, np.int32),
            num_tokens=np.frombuffer(message.num_tokens, np.int32),
            samples=np.frombuffer(message.samples, np.bool_),
            num_new_blocks=np.frombuffer(message.num_new_blocks, np.int32),
            new_blocks=np.frombuffer(message.new_blocks, np.int32),
            starts=message.starts,
            released=message.released,
            copied=np.frombuffer(message.copied, np.int32),
            copies=np.frombuffer(message.copies, np.int32),
        )
        if why := problem(step, self._engine.info):
            raise StreamError(f"step {step.step} cannot be computed: {why}")
        self._drop(message.released)
        self._held.update(dict.fromkeys(start.sequence for start in message.starts))
        self._departure.step_begins()
        self.wedge.step_begins(time.monotonic())
        try:
            self._engine.launch(step)
        except EngineError as error:
            stream.send(StepFailed(message.step, str(error)))
            raise
        self._launched.append(message.step)

    def _collect(self, stream: BlockingStream) -> None:
        step = self._launched.popleft()
        try:
            output = self._engine.collect()
        except EngineError as error:
            stream.send(StepFailed(step, str(error)))
            raise
        self._step_s = (output.computed_ns - output.launched_ns) / 1e9
        self.wedge.step_ended(time.monotonic(), self._step_s)
        self.metrics.step_ended(output.launched_ns, output.computed_ns)
        stream.send(
            StepResult(
                step=output.step,
                tokens=output.tokens.tobytes(),
                ended=output.ended.tobytes(),
                launched_ns=output.launched_ns,
                computed_ns=output.computed_ns,
                returned_ns=time.monotonic_ns(),
                failed=output.failed,
                logprobs=LogprobColumns.pack(output.logprobs),
                vectors={sequence: vector.tobytes() for sequence, vector in output.vectors.items()},
            )
        )

    def _drop(self, sequences: list[int]) -> None:
        for sequence in sequences:
            self._held.pop(sequence, None)

    def _reset(self) -> None:
        """Empty the KV pool: a new epoch starts with nothing."""
        while self._launched:
            self._launched.popleft()
            self._engine.collect()
        self._engine.forget(list(self._held))
        self._held.clear()
