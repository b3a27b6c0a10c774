"""What a live run was, read from its event logs (`fairlead up --record DIR`): who asked, what came of it, which steps.

Owns the reading of both cores' logs into the simulator's own terms, so that a run can be replayed and the replay be
compared with what happened. All times are the scheduler's: seconds since its log began. Knows counts, never text.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from policies.commands import Deliver, Finish, Int64Array, Refuse, Release, StartStep, StepPlan, decode
from policies.event_log import CutShortError, EventLogError, Record, read_records
from policies.events import Arrived, ExecutorJoined, ExecutorLost, PolicyApplied, Released, StepEnded
from policies.simulation.fitted_model import FittedDevice
from policies.simulation.fitting import StepSample, fit
from policies.simulation.outcome import Served
from policies.simulation.step_shape import shape_of
from policies.simulation.tokens import Gaps, TokenTimes
from policies.simulation.workload import TraceRequest


class RecordingError(Exception):
    """Logs from which no run can be read; the sentence says why."""


class AppliedPolicy(NamedTuple):
    """A policy revision that took effect."""

    at_s: float
    revision: int
    document: bytes


class Recording(NamedTuple):
    """A run."""

    served: list[Served]
    """By arrival; what each asked for is in it. A request of several choices is as many requests of one."""
    gaps: Gaps
    """Request n of these is `served[n - 1]`."""
    steps: list[StepSample]
    """By the time their ends were heard of."""
    executors: list[ExecutorJoined]
    policies: list[AppliedPolicy]
    num_left_out: int
    """Requests that somebody cancelled before their first token: what they would have taken is not known."""

    @property
    def requests(self) -> list[TraceRequest]:
        """The workload, to be replayed."""
        return [served.asked for served in self.served]


def read_recording(admission: bytes, scheduler: bytes) -> Recording:
    """A run from the event logs of both cores. A log that ends within a record counts up to there.

    A request arrives when the scheduler believes that it did: at its release less what it waited. So the way from one
    service to the other is in no figure, as it is in no replay's. Requests that admission refused are in the workload
    with the output they declared.

    Raises:
        RecordingError: a log is damaged, or lacks what the other one has.
    """
    run = _Run()
    for record in _records(admission, "admission"):
        run.admission(record)
    for record in _records(scheduler, "scheduler"):
        run.scheduler(record)
    return run.recording()


def fitted_device(recordings: Sequence[Recording], description: str) -> FittedDevice:
    """The executor of recorded runs, as a replay needs it: with a step model fitted to the steps of all of them.

    Raises:
        RecordingError: no executor joined in the first of them.
        FitError: there are too few steps.
    """
    if not recordings[0].executors:
        raise RecordingError("no executor joined while this was recorded")
    joined = recordings[0].executors[0]
    return FittedDevice(
        description=description,
        num_blocks=joined.num_blocks,
        block_tokens=joined.block_tokens,
        max_sequence_tokens=joined.max_sequence_tokens,
        max_steps_in_flight=joined.max_steps_in_flight,
        model=fit([step for recording in recordings for step in recording.steps]),
    )


def _records(log: bytes, service: str) -> Iterator[Record]:
    try:
        yield from read_records(log)
    except CutShortError:
        return
    except EventLogError as error:
        raise RecordingError(f"{service}.log: {error}") from error


class _Planned(NamedTuple):
    step: int
    planned_at_s: float
    plan: StepPlan


class _Run:
    """Both logs, as far as they have been read."""

    def __init__(self) -> None:
        self._arrived: dict[int, tuple[float, Arrived]] = {}
        self._sent_at_s: dict[int, float] = {}
        """Releases, by admission's clock."""
        self._refused: dict[int, tuple[float, str]] = {}
        self._began_at_s: float | None = None
        """The scheduler's clock when its log began."""
        self._behind_s = float("inf")
        """From admission's clock to the scheduler's time, and the shortest way between them."""
        self._served: dict[int, Served] = {}
        self._choices: dict[int, int] = {}
        self._deliveries: list[tuple[float, Int64Array]] = []
        self._in_flight: dict[int, deque[_Planned]] = {}
        self._steps: list[StepSample] = []
        self._executors: list[ExecutorJoined] = []
        self._policies: list[AppliedPolicy] = []

    def admission(self, record: Record) -> None:
        """The next record of admission's log."""
        if isinstance(record.event, Arrived):
            self._arrived[record.event.request] = record.now, record.event
        for command in decode(record.commands):
            match command:
                case Release():
                    self._sent_at_s[command.request] = record.now
                case Refuse():
                    self._refused[command.request] = record.now, command.code

    def scheduler(self, record: Record) -> None:
        """The next record of the scheduler's log; all of admission's has been read."""
        if self._began_at_s is None:
            self._began_at_s = record.now
        now = record.now - self._began_at_s
        returned = None
        match record.event:
            case PolicyApplied():
                self._policies.append(AppliedPolicy(now, record.event.revision, record.event.document))
            case ExecutorJoined():
                self._executors.append(record.event)
            case ExecutorLost():
                self._in_flight.pop(record.event.executor, None)
            case Released():
                self._release(record.event, now)
            case StepEnded():
                returned = self._end_step(record.event, now)
        for command in decode(record.commands):
            match command:
                case StartStep():
                    self._start_step(command, now)
                case Deliver() if returned is not None:
                    sampling = returned.sequences[returned.samples]
                    self._deliveries.append((now, sampling[command.rows]))
                case Finish():
                    self._finish(command, now)

    def recording(self) -> Recording:
        """What has been read."""
        for request, (at_s, code) in self._refused.items():
            arrived_at_s, arrived = self._arrived[request]
            # Without a release there is nothing that ties the two clocks.
            behind_s = self._behind_s if self._sent_at_s else -at_s
            asked = _asked(arrived, arrived_at_s + behind_s)
            self._served[request] = Served(asked, refusal=code)
        with_tokens = {int(sequence) for _, sequences in self._deliveries for sequence in sequences}
        kept = [id_ for id_, served in self._served.items() if id_ in with_tokens or served.refusal]
        kept.sort(key=lambda id_: (self._served[id_].asked.arrived_at_s, id_))
        numbers = {id_: number for number, id_ in enumerate(kept, start=1)}
        tokens = TokenTimes(len(kept))
        for now, sequences in self._deliveries:
            for number in tokens.add(np.array([numbers[id_] for id_ in sequences.tolist()]), now).tolist():
                served = self._served[kept[number - 1]]
                served.first_token_at_s = now
                if served.prefill_done_at_s is None:
                    served.prefill_done_at_s = now
        for id_, number in numbers.items():
            self._count(self._served[id_], tokens, number)
        return Recording(
            served=[self._served[id_] for id_ in kept],
            gaps=tokens.gaps(),
            steps=self._steps,
            executors=self._executors,
            policies=self._policies,
            num_left_out=len(self._served) - len(kept),
        )

    def _count(self, served: Served, tokens: TokenTimes, number: int) -> None:
        served.output_tokens = int(tokens.num_tokens[number])
        if served.output_tokens:
            served.last_token_at_s = float(tokens.last_at_s[number])
            served.asked = served.asked._replace(output_tokens=served.output_tokens)

    def _release(self, released: Released, now: float) -> None:
        request = released.request
        _, arrived = self._arrived.get(request, (0.0, None))
        if arrived is None:
            raise RecordingError(f"admission.log has no request {request}, which the scheduler was given")
        if request in self._sent_at_s:
            self._behind_s = min(self._behind_s, now - self._sent_at_s[request])
        asked = _asked(arrived, max(0.0, now - released.waited_s))._replace(
            key_tokens=released.key_tokens,
            prompt_keys=released.prompt_keys,
            output_tokens=released.max_output_tokens,
            max_output_tokens=released.max_output_tokens,
        )
        self._choices[request] = released.num_choices
        for sequence in range(request, request + released.num_choices):
            self._served[sequence] = Served(asked, slo_class=released.slo_class)

    def _start_step(self, command: StartStep, now: float) -> None:
        plan = command.plan
        self._in_flight.setdefault(command.executor, deque()).append(_Planned(command.step, now, plan))
        for sequence, cached in zip(plan.starts, plan.cached, strict=True):
            served = self._served[sequence]
            served.num_starts += 1
            if served.first_scheduled_at_s is None:
                served.first_scheduled_at_s = now
                served.prefix_hit_tokens = cached

    def _end_step(self, ended: StepEnded, now: float) -> StepPlan | None:
        in_flight = self._in_flight.get(ended.executor)
        if not in_flight or in_flight[0].step != ended.step:
            return None
        _, planned_at_s, plan = in_flight.popleft()
        ended_at_s = now - ended.ended_ago_s
        self._steps.append(
            StepSample(
                executor=ended.executor,
                shape=shape_of(plan),
                planned_at_s=planned_at_s,
                begun_at_s=ended_at_s - ended.step_time_s,
                ended_at_s=ended_at_s,
                heard_at_s=now,
            )
        )
        silent = np.flatnonzero(~plan.samples)
        ends = (plan.positions[silent] + plan.num_tokens[silent]).tolist()
        for sequence, kv_tokens in zip(plan.sequences[silent].tolist(), ends, strict=True):
            served = self._served[sequence]
            if served.prefill_done_at_s is None and kv_tokens >= served.asked.prompt_tokens:
                served.prefill_done_at_s = now
        return plan

    def _finish(self, command: Finish, now: float) -> None:
        for sequence in range(command.request, command.request + self._choices.get(command.request, 0)):
            served = self._served[sequence]
            if command.outcome == "finished":
                served.finished_at_s = now
            elif command.outcome == "cancelled":
                served.cancellation = command.code
            else:
                served.refusal = command.code or command.outcome


def _asked(arrived: Arrived, at_s: float) -> TraceRequest:
    declared = max(1, arrived.max_output_tokens)
    return TraceRequest(
        arrived_at_s=at_s,
        tenant=arrived.tenant,
        tier=arrived.tier,
        prompt_tokens=arrived.prompt_tokens,
        output_tokens=declared,
        max_output_tokens=declared,
        weight=arrived.weight,
        service_tier=arrived.service_tier,
        allowed_classes=arrived.allowed_classes,
    )
