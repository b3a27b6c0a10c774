"""The virtual half of "one core, two drivers": both cores in virtual time, joined as the services join them.

Owns the virtual clock, the executors' device time and what happened to every request. A `StartStep` asks the executor
model for a duration instead of a GPU; nothing else differs from live. Messages between the cores take no time, those
to and from a device what its `delays` say.
"""

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any, Literal

import numpy as np

from policies.admission.core import AdmissionCore
from policies.admission.evenness import jain
from policies.admission.limits.algorithms import NS_PER_S
from policies.admission.limits.book import LimitBook
from policies.commands import (
    Adjust,
    CancelReleased,
    Command,
    Deliver,
    Finish,
    Refuse,
    Release,
    Reserve,
    Settle,
    StartStep,
    WakeAt,
    Withdraw,
)
from policies.events import (
    Arrived,
    CancelRequested,
    CapacityChanged,
    ExecutorJoined,
    PolicyApplied,
    Released,
    RequestFinished,
    Started,
    StepEnded,
    TokensProduced,
    Woke,
)
from policies.scheduling.core import FIRST_TOKEN, FirstToken, SchedulerCore
from policies.simulation.executor_model import Device
from policies.simulation.outcome import Outcome, Served
from policies.simulation.running import Running
from policies.simulation.step_shape import shape_of
from policies.simulation.tokens import TokenTimes, own_ends
from policies.simulation.workload import TraceRequest

ADMISSION, SCHEDULER = "admission", "scheduler"
TILE_TOKENS = 128
"""Columns of a tile of the matrix products, as measured on the devices of the scheduling specification, 2.4."""
ARRIVALS_PER_LOOK = 64
"""How many requests arrive between two looks at whether the run is still wanted."""

Decides = Literal["at_every_event", "between_steps"]
"""When the cores decide: `at_every_event`, as live, or `between_steps`, admission first, once all that came while a
step ran has been heard: the loop of engines that are one process.
"""
Observer = Callable[[str, float, Any, list[Command]], None]
"""Told (core, now, event, commands) after each event; a decision between steps follows a `Woke`."""


class Simulation:
    """One run of a policy over a workload.

    `duration_s` cuts the run: later arrivals do not happen, and what is unfinished then stays so. `give_up` is asked
    every 64 arrivals whether the rest of the run is of no interest.

    Attributes:
        now: virtual time, seconds.
        served: what happened so far, by request, in order of arrival.
        tokens: output tokens so far.
        requests: the workload.
        observers: told of every event, in this order.
    """

    def __init__(
        self,
        document: bytes,
        requests: list[TraceRequest],
        device: Device,
        *,
        first_token: FirstToken = FIRST_TOKEN,
        num_executors: int = 1,
        steps_in_flight: int = 2,
        decides: Decides = "at_every_event",
        duration_s: float | None = None,
        check: bool = False,
        observer: Observer | None = None,
        progress: Callable[[float, int], None] | None = None,
        give_up: "Callable[[Simulation], bool] | None" = None,
    ) -> None:
        self.admission = AdmissionCore()
        self.scheduler = SchedulerCore(first_token=first_token)
        self._cores: dict[str, AdmissionCore | SchedulerCore] = {ADMISSION: self.admission, SCHEDULER: self.scheduler}
        self._between_steps = decides == "between_steps"
        self._undecided = False
        """Whether something was heard that no decision has followed yet."""
        self._document = document
        self.requests = requests
        self._device = device
        self._num_executors = num_executors
        self._steps_in_flight = steps_in_flight
        self._duration_s = duration_s
        self._check = check
        self.observers = [] if observer is None else [observer]
        self._progress = progress
        self._give_up = give_up
        self.now = 0.0
        self._heap: list[tuple[float, int, str, Any]] = []
        self._order = count()
        self._inbox: deque[tuple[str, Any]] = deque()
        self._wakes_at: dict[str, float] = {}
        self._busy_until = [0.0] * num_executors
        self._heard_until = [0.0] * num_executors
        self._steps: dict[tuple[int, int], Running] = {}
        self.served: dict[int, Served] = {}
        self._open = 0
        before = [request.prompt_tokens - (first_token == FIRST_TOKEN) for request in requests]
        self._before_output = np.array([0, *before])
        """By request: its tokens in KV before the step that makes its first token."""
        self._ends = own_ends(requests, samples_first=first_token == FIRST_TOKEN)
        self.tokens = TokenTimes(len(requests))
        self._num_steps = self._num_step_tokens = 0
        self._tile_fill = 0.0
        self._given_up = False
        self._limits = LimitBook()
        self._max_gap, self._max_gap_ratio, self._jain = 0.0, 0.0, 1.0

    def run(self) -> Outcome:
        """Run until every request has ended or the time is up."""
        self._begin()
        arrivals = iter(enumerate(self.requests, start=1))
        pending = next(arrivals, None)
        ends_at = float("inf") if self._duration_s is None else self._duration_s
        num_arriving = sum(request.arrived_at_s <= ends_at for request in self.requests)
        while pending is not None or self._open:
            arrives_at = float("inf") if pending is None else pending[1].arrived_at_s
            happens_at = self._heap[0][0] if self._heap else float("inf")
            if self._undecided and arrives_at > self.now:
                self._conclude()
                continue
            if min(arrives_at, happens_at) > ends_at:
                self.now = ends_at
                break
            # Between steps, what arrives while one runs is heard when it has ended.
            if pending is not None and arrives_at <= (self.now if self._between_steps and self._steps else happens_at):
                self.now = max(self.now, arrives_at)
                self._arrive(*pending)
                if pending[0] == num_arriving:
                    self._jain = self._fairness()
                elif self._give_up and pending[0] % ARRIVALS_PER_LOOK == 0 and self._give_up(self):
                    self._given_up = True
                    break
                pending = next(arrivals, None)
            elif self._heap:
                at, _, kind, payload = heappop(self._heap)
                self.now = max(self.now, at)
                self._happen(kind, payload)
            else:
                raise RuntimeError(f"{self._open} requests wait at {self.now:.3f} s and no core asked for anything")
        return self._outcome()

    def _begin(self) -> None:
        for core in (ADMISSION, SCHEDULER):
            self._tell(core, Started(wall_s=0.0))
            self._tell(core, PolicyApplied(1, self._document))
        device = self._device
        for executor in range(self._num_executors):
            joined = ExecutorJoined(
                executor,
                device.num_blocks,
                device.block_tokens,
                device.max_sequence_tokens,
                self._steps_in_flight,
                copies_blocks=True,
            )
            self._tell(SCHEDULER, joined)
        pool_tokens = device.num_blocks * device.block_tokens
        capacity = CapacityChanged(
            self._num_executors, self._num_executors * pool_tokens, min(device.max_sequence_tokens, pool_tokens)
        )
        self._tell(ADMISSION, capacity)

    def _arrive(self, request: int, asked: TraceRequest) -> None:
        self.served[request] = Served(asked)
        self._open += 1
        event = Arrived(
            request,
            asked.tenant,
            asked.tier,
            asked.prompt_tokens,
            asked.declared_tokens,
            weight=asked.weight,
            project=asked.project,
            key=asked.key,
            service_tier=asked.service_tier,
            allowed_classes=asked.allowed_classes,
            output_tokens=asked.output_tokens,
        )
        self._tell(ADMISSION, event)
        if self._progress is not None:
            self._progress(self.now, request)

    def _fairness(self) -> float:
        """Jain's index of the service charged so far, over the tenants' weights."""
        cost = self.admission.rules.cost
        charged = {served.asked.tenant: 0.0 for served in self.served.values()}
        weights = {served.asked.tenant: served.asked.weight for served in self.served.values()}
        for request, served in self.served.items():
            if served.slo_class:
                asked = served.asked
                charged[asked.tenant] += cost.whole(asked.prompt_tokens, int(self.tokens.num_tokens[request]))
        return jain([service / weights[tenant] for tenant, service in charged.items()])

    def _happen(self, kind: str, payload: Any) -> None:
        if kind == "step":
            running = self._steps[payload]
            for sequence, kv_tokens in running.filled:
                served = self.served[sequence]
                if served.prefill_done_at_s is None and kv_tokens >= served.asked.prompt_tokens:
                    served.prefill_done_at_s = self.now
            ended = StepEnded(running.executor, running.step, running.step_time_s, running.ended, running.ended_ago_s)
            self._tell(SCHEDULER, ended)
            del self._steps[payload]
        elif self._wakes_at.get(kind) == payload:
            del self._wakes_at[kind]
            self._tell(kind, Woke())

    def _tell(self, core: str, event: Any) -> None:
        """Hand over an event and everything that follows from it at this instant."""
        self._inbox.append((core, event))
        self._undecided = self._between_steps
        self._drain()

    def _drain(self) -> None:
        while self._inbox:
            name, event = self._inbox.popleft()
            core = self._cores[name]
            commands = (core.take if self._between_steps else core.handle)(event, self.now)
            if self._check and not self._between_steps:
                core.check()
            self._follow(name, event, commands)

    def _conclude(self) -> None:
        """Both cores decide upon what they have heard."""
        self._undecided = False
        if commands := self.admission.decide(self.now):
            self._follow(ADMISSION, Woke(), commands)
            self._drain()
        self._follow(SCHEDULER, Woke(), self.scheduler.plan(self.now))
        if self._check:
            self.admission.check()
            self.scheduler.check()

    def _follow(self, core: str, event: Any, commands: list[Command]) -> None:
        for observe in self.observers:
            observe(core, self.now, event, commands)
        for command in commands:
            self._perform(core, command)
        if core == ADMISSION and self.admission.queue.num_backlogged > 1:
            self._max_gap = max(self._max_gap, self.admission.gap)
            self._max_gap_ratio = max(self._max_gap_ratio, self.admission.gap_ratio)

    def _perform(self, core: str, command: Command) -> None:
        match command:
            case StartStep():
                self._start_step(command)
            case Deliver():
                self._deliver(command)
            case WakeAt():
                self._wakes_at[core] = command.at_s
                heappush(self._heap, (command.at_s, next(self._order), core, command.at_s))
            case Release():
                self._release(command)
            case Finish():
                finished = RequestFinished(command.request, command.output_tokens, command.outcome)
                self._inbox.append((ADMISSION, finished))
                served = self.served[command.request]
                if command.outcome == "finished":
                    served.finished_at_s = self.now
                elif command.outcome == "cancelled":
                    served.cancellation = command.code
                else:
                    served.refusal = command.code or command.outcome
            case Reserve():
                self._inbox.append((ADMISSION, self._limits.reserve(command.request, command.items, self._now_ns)))
            case Adjust():
                self._limits.adjust(command.request, command.items, self._now_ns)
            case Settle():
                self._open -= 1
            case Refuse():
                self.served[command.request].refusal = command.code
                self._open -= 1
            case Withdraw():
                self.served[command.request].cancellation = command.reason
                self._open -= 1
            case CancelReleased():
                self._inbox.append((SCHEDULER, CancelRequested(command.request, command.reason)))

    def _release(self, command: Release) -> None:
        served = self.served[command.request]
        served.slo_class = command.slo_class
        asked = served.asked
        event = Released(
            command.request,
            command.slo_class,
            asked.prompt_tokens,
            asked.declared_tokens,
            waited_s=command.waited_s,
            owner=asked.tenant,
            prompt_keys=asked.prompt_keys,
            key_tokens=asked.key_tokens,
            output_tokens=asked.output_tokens,
        )
        self._inbox.append((SCHEDULER, event))

    def _start_step(self, command: StartStep) -> None:
        plan, executor = command.plan, command.executor
        shape = shape_of(plan)
        duration = self._device.step_time.step_s(shape)
        delays = self._device.delays
        begun_at = max(self.now + delays.launch_s(), self._busy_until[executor] + delays.relaunch_s())
        ended_at = begun_at + duration
        # Results come in the order of their steps, however long each is on its way.
        heard_at = max(ended_at + delays.return_s(), self._heard_until[executor])
        self._busy_until[executor], self._heard_until[executor] = ended_at, heard_at
        sampled, filled, ended = plan.sequences, [], []
        if not plan.samples.all():
            silent = ~plan.samples
            sampled = plan.sequences[plan.samples]
            ends = (plan.positions[silent] + plan.num_tokens[silent]).tolist()
            filled = list(zip(plan.sequences[silent].tolist(), ends, strict=True))
        if self._ends is not None:
            at_end = plan.positions + plan.num_tokens == self._ends[plan.sequences]
            ended = plan.sequences[at_end & plan.samples].tolist()
        made = None
        if self.scheduler.rules.restarts:
            made = (plan.positions + plan.num_tokens)[plan.samples] - self._before_output[sampled]
        key = (executor, command.step)
        self._steps[key] = Running(executor, command.step, duration, heard_at - ended_at, sampled, filled, ended, made)
        heappush(self._heap, (heard_at, next(self._order), "step", key))
        self._num_steps += 1
        self._num_step_tokens += shape.num_tokens
        self._tile_fill += shape.num_tokens / (TILE_TOKENS * -(-shape.num_tokens // TILE_TOKENS))
        for sequence, cached in zip(plan.starts, plan.cached, strict=True):
            served = self.served[sequence]
            served.num_starts += 1
            if served.first_scheduled_at_s is None:
                served.first_scheduled_at_s = self.now
                served.prefix_hit_tokens = cached

    def _deliver(self, command: Deliver) -> None:
        running = self._steps[command.executor, command.step]
        sequences = running.sampled[command.rows]
        if running.made is not None:
            sequences = sequences[running.made[command.rows] > self.tokens.num_tokens[sequences]]
        prefix_hits = []
        for sequence in self.tokens.add(sequences, self.now).tolist():
            served = self.served[sequence]
            if served.prefix_hit_tokens:
                prefix_hits.append((sequence, served.prefix_hit_tokens))
            served.first_token_at_s = self.now
            if served.prefill_done_at_s is None:
                served.prefill_done_at_s = self.now
        self._inbox.append((ADMISSION, TokensProduced(sequences.tolist(), prefix_hits)))

    @property
    def _now_ns(self) -> int:
        return round(self.now * NS_PER_S)

    def _outcome(self) -> Outcome:
        rules, seen = self.admission.rules, self.scheduler.snapshot()
        for request, served in self.served.items():
            served.output_tokens = int(self.tokens.num_tokens[request])
            if served.output_tokens:
                served.last_token_at_s = float(self.tokens.last_at_s[request])
        return Outcome(
            policy=rules.name,
            classes=[(slo.name, slo.ttft_s, slo.tbt_s) for slo in rules.classes],
            served=list(self.served.values()),
            gaps=self.tokens.gaps(),
            simulated_s=self.now,
            preemptions=seen.num_preemptions,
            num_steps=self._num_steps,
            num_step_tokens=self._num_step_tokens,
            tile_fill=self._tile_fill / self._num_steps if self._num_steps else 0.0,
            max_gap=self._max_gap,
            max_gap_ratio=self._max_gap_ratio,
            jain=self._jain,
            coverage=seen.coverage,
            recomputed_tokens=seen.num_recomputed_tokens,
            given_up=self._given_up,
        )
