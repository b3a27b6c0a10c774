"""Scheduling: which tokens are computed in the next step, on which executor, in which KV blocks.

Owns requests from release to end, deadlines, block tables and step plans. Knows counts and classes; does not know text,
tensors or tenants, and reads no clock: `handle(event, now) -> commands` is the whole interface.

A new policy revision carries everything over: sequences keep their class's values and their blocks, and prefills that
no stage of the new policy could finish are taken by an implicit first stage.
"""

from typing import Literal

from policies.commands import Command, Deliver, Finish, FinishReason, Forget, StartStep
from policies.document.compile import compile_scheduling
from policies.document.loading import load_policy
from policies.events import (
    CancelRequested,
    ExecutorJoined,
    ExecutorLost,
    GatewayLost,
    GatewayResumed,
    GatewayStalled,
    PolicyApplied,
    Released,
    SchedulerEvent,
    Started,
    StepEnded,
    StopFound,
    Woke,
)
from policies.lifecycle import Happening, State
from policies.scheduling import absence, templates
from policies.scheduling.backpressure import Stalls
from policies.scheduling.checking import Snapshot, Totals, check_executor, snapshot
from policies.scheduling.executor import Executor
from policies.scheduling.lengths.lengths import Lengths, coverage_of, following
from policies.scheduling.plans import finish_plan
from policies.scheduling.releases import begin
from policies.scheduling.rules import SchedulingRules
from policies.scheduling.stages import Draft
from policies.scheduling.state import Request, Sequence
from policies.scheduling.watchdog import Watchdog

TOO_LONG = "context_length_exceeded"
OUTPUT_FAILED = "output_failed"

FirstToken = Literal["last_chunk", "next_decode"]
FIRST_TOKEN: FirstToken = "last_chunk"  # noqa: S105  which step makes a sequence's first token, not a secret


class SchedulerCore:
    """The decisions of the scheduler service. The first events are `Started` and `PolicyApplied`.

    Args:
        first_token: `last_chunk`: the last piece of a prompt samples output token 1; `next_decode`: the first decode
            does (the convention of some published experiments).
    """

    def __init__(self, first_token: FirstToken = FIRST_TOKEN) -> None:
        self.revision = 0
        self.executors: dict[int, Executor] = {}
        self.requests: dict[int, Request] = {}
        self.sequences: dict[int, Sequence] = {}
        self._unrouted: dict[int, Sequence] = {}
        self._samples_first = first_token == FIRST_TOKEN
        self._rules: SchedulingRules | None = None
        self._num_released = 0
        self._stalls = Stalls()
        self._absence = absence.Absence()
        self._watchdog = Watchdog()
        self._lengths: Lengths | None = None
        self._lost = Totals()
        """Of executors that are gone."""

    def handle(self, event: SchedulerEvent, now: float) -> list[Command]:
        """Decide. `now` is core time in seconds and never goes backwards.

        Unknown requests, sequences, executors and steps are ignored. Every released request gets exactly one `Finish`.
        """
        return self.take(event, now) + self.plan(now)

    def take(self, event: SchedulerEvent, now: float) -> list[Command]:
        """What an event brings about, without the steps that may follow from it."""
        commands: list[Command] = []
        match event:
            case StepEnded():
                self._end_step(event, now, commands)
            case Released():
                self._release(event, now, commands)
            case CancelRequested():
                self._cancel(event.request, event.reason, now, commands)
            case StopFound():
                self._stop(event, now, commands)
            case GatewayStalled():
                self._stalls.begin(event.gateway, now)
            case GatewayResumed():
                if self._stalls.end(event.gateway):
                    self._set_stalled(event.gateway, stalled=False)
            case GatewayLost():
                self._stalls.end(event.gateway)
                self._cancel_gateway(event.gateway, "gateway_lost", now, commands)
            case Woke():
                self._act_on_stalls(now, commands)
                for abandon in self._watchdog.woken(self.executors.values(), now):
                    commands.append(abandon)
                    self._lose(abandon.executor, now, commands)
                if self._absence.is_over(now):
                    for request in list(self.requests.values()):
                        code, message = absence.CODE, absence.SENTENCE
                        self._abandon(request, now, commands, outcome="error", code=code, message=message)
            case ExecutorJoined():
                self._join(event, now, commands)
            case ExecutorLost():
                self._lose(event.executor, now, commands)
            case PolicyApplied():
                self.follow_policy(event)
            case Started():
                pass
        return commands

    def plan(self, now: float) -> list[Command]:
        """The steps that can begin now."""
        commands: list[Command] = []
        for executor in self.executors.values():
            self._plan(executor, now, commands)
        self._absence.look(len(self.executors), len(self.requests), now)
        also_at_s = [at_s for at_s in (self._stalls.next_at_s(), self._absence.over_at_s()) if at_s is not None]
        commands += self._watchdog.wake(self.executors.values(), min(also_at_s, default=None))
        return commands

    def check(self) -> None:
        """Raise AssertionError unless every invariant holds: blocks, slots, budgets, counters, one state a sequence."""
        self._watchdog.check(self.executors.values())
        for executor in self.executors.values():
            check_executor(executor)
        if self.requests and not self.executors and self._absence.over_at_s() is None:
            raise AssertionError("requests wait for an executor, and nobody will be woken to end that")
        routed = {s for executor in self.executors.values() for s in executor.routed}
        if routed | set(self._unrouted) != set(self.sequences) or routed & set(self._unrouted):
            raise AssertionError("a sequence is not in exactly one place: on an executor or waiting for one")
        open_ = {sequence for request in self.requests.values() for sequence in request.open}
        if open_ != set(self.sequences):
            raise AssertionError("the open choices of the requests are not the sequences known")

    def snapshot(self) -> Snapshot:
        """What gauges show: counts over all executors."""
        return snapshot(self.executors.values(), len(self._unrouted), self._lost, coverage_of(self._lengths))

    @property
    def rules(self) -> SchedulingRules:
        """What the policy in force asks of the scheduler.

        Raises:
            RuntimeError: an event came before the first `PolicyApplied`.
        """
        if self._rules is None:
            raise RuntimeError("the scheduler needs a PolicyApplied before any other event than Started")
        return self._rules

    # --- requests -------------------------------------------------------------------------------------------------

    def _release(self, event: Released, now: float, commands: list[Command]) -> None:
        if event.request in self.requests:
            return
        request, sequences = begin(event, now, self._num_released)
        self._num_released += event.num_choices
        self.requests[request.id] = request
        for sequence in sequences:
            _, sequence.tbt_s = self.rules.slo(sequence.slo_class)
            sequence.priority, _ = self.rules.slo(sequence.slo_class)
            sequence.stalled = self._stalls.is_left_out(event.gateway)
            sequence.life.pass_(Happening.RELEASED, now, event.slo_class)
            self.sequences[sequence.id] = sequence
            if self._lengths is not None:
                self._lengths.begin(sequence)
            if not self._route(sequence, now, commands):
                return

    def _route(self, sequence: Sequence, now: float, commands: list[Command]) -> bool:
        """Find a sequence an executor; False if none of those present could ever run it: its request is over."""
        if not self.executors:
            self._unrouted[sequence.id] = sequence
            return True
        executor = self.rules.route(self.executors.values(), sequence)
        if executor is not None:
            executor.enqueue(sequence)
            return True
        self._unrouted[sequence.id] = sequence
        obstacles = [executor.obstacle(sequence) for executor in self.executors.values()]
        outcome = "error" if sequence.resumed else "refused"
        message = obstacles[0] or ""
        self._abandon(sequence.request, now, commands, outcome=outcome, code=TOO_LONG, message=message)
        return False

    def _abandon(
        self, request: Request, now: float, commands: list[Command], *, outcome: str, code: str, message: str
    ) -> None:
        """End every open choice of a request, with what it has produced."""
        for sequence_id in list(request.open):
            sequence = self.sequences.get(sequence_id)
            if sequence is not None:
                self._close(sequence, self._produced(sequence), Happening.CANCELLED, now, code)
        del self.requests[request.id]
        commands.append(
            Finish(
                request=request.id,
                outcome=outcome,
                output_tokens=sum(request.output_tokens.values()),
                code=code,
                message=message,
            )
        )

    def _produced(self, sequence: Sequence) -> int:
        if sequence.executor is None:
            return sequence.kept_tokens
        return self.executors[sequence.executor].produced(sequence)

    def _close(self, sequence: Sequence, output_tokens: int, happening: Happening, now: float, reason: str) -> None:
        """A sequence is over; its blocks are free for the next plan."""
        if self._lengths is not None:
            self._lengths.ended(sequence, output_tokens, cut_short=happening is not Happening.FINISHED)
        if sequence.executor is None:
            sequence.life.pass_(happening, now, reason)
            del self._unrouted[sequence.id]
        else:
            self.executors[sequence.executor].remove(sequence, happening, now, reason)
        del self.sequences[sequence.id]
        del sequence.request.open[sequence.id]
        sequence.request.output_tokens[sequence.id] = output_tokens

    def _complete(
        self, sequence: Sequence, output_tokens: int, reason: str, now: float, commands: list[Command]
    ) -> None:
        """A sequence finished; the request too when it was the last choice."""
        self._close(sequence, output_tokens, Happening.FINISHED, now, reason)
        request = sequence.request
        if not request.open:
            del self.requests[request.id]
            total = sum(request.output_tokens.values())
            commands.append(Finish(request=request.id, outcome="finished", output_tokens=total))

    def _cancel(self, request_id: int, reason: str, now: float, commands: list[Command]) -> None:
        request = self.requests.get(request_id)
        if request is not None:
            message = f"the request was cancelled: {reason.replace('_', ' ')}"
            self._abandon(request, now, commands, outcome="cancelled", code=reason, message=message)

    def _cancel_gateway(self, gateway: int, reason: str, now: float, commands: list[Command]) -> None:
        for request in [r for r in self.requests.values() if r.gateway == gateway]:
            self._cancel(request.id, reason, now, commands)

    def _stop(self, event: StopFound, now: float, commands: list[Command]) -> None:
        sequence = self.sequences.get(event.sequence)
        if sequence is not None:
            self._complete(sequence, min(event.output_tokens, sequence.max_output_tokens), "stop string", now, commands)
            return
        for request in self.requests.values():
            # Its last token overtook the stop string found in it; a sibling is still running, so the count can follow.
            if event.sequence in request.output_tokens:
                made = request.output_tokens[event.sequence]
                request.output_tokens[event.sequence] = min(event.output_tokens, made)
                return

    # --- gateways that do not read --------------------------------------------------------------------------------

    def _act_on_stalls(self, now: float, commands: list[Command]) -> None:
        left_out, cancelled = self._stalls.overdue(now)
        for gateway in left_out:
            self._set_stalled(gateway, stalled=True)
        for gateway in cancelled:
            self._cancel_gateway(gateway, "slow_gateway", now, commands)

    def _set_stalled(self, gateway: int, *, stalled: bool) -> None:
        for sequence in self.sequences.values():
            if sequence.request.gateway != gateway:
                continue
            if sequence.executor is None:
                sequence.stalled = stalled
            else:
                self.executors[sequence.executor].set_stalled(sequence, stalled=stalled)

    # --- executors and policies -----------------------------------------------------------------------------------

    def _join(self, event: ExecutorJoined, now: float, commands: list[Command]) -> None:
        self._lose(event.executor, now, commands)
        self.executors[event.executor] = Executor(event, self.rules, samples_first=self._samples_first)
        for sequence in list(self._unrouted.values()):
            # A refusal takes a request's other choices with it.
            if self._unrouted.pop(sequence.id, None) is not None:
                self._route(sequence, now, commands)

    def _lose(self, executor_id: int, now: float, commands: list[Command]) -> None:
        """Its sequences keep the tokens that returned and are computed again elsewhere, or when one joins."""
        executor = self.executors.get(executor_id)
        if executor is None:
            return
        kept = {sequence.id: executor.produced(sequence) for sequence in executor.routed.values()}
        del self.executors[executor_id]
        self._lost = self._lost.with_those_of(executor)
        orphans = sorted(executor.routed.values(), key=lambda s: s.number)
        for sequence in orphans:
            sequence.life.pass_(Happening.LOST, now)
            sequence.kept_tokens = kept[sequence.id]
            sequence.slot = sequence.executor = None
            sequence.ticket = sequence.admitted = 0
            sequence.awaits = None
            self._unrouted[sequence.id] = sequence
        for sequence in orphans:
            if self.executors and self._unrouted.pop(sequence.id, None) is not None:
                self._route(sequence, now, commands)

    def follow_policy(self, event: PolicyApplied) -> None:
        """Plan by this revision from the next plan on; `handle` does so and makes that plan."""
        self._rules = compile_scheduling(load_policy(event.document))
        self.revision = event.revision
        self._lengths = following(self._lengths, self._rules.lengths, self.sequences.values(), self._emitted)
        for sequence in self.sequences.values():
            sequence.priority, _ = self._rules.slo(sequence.slo_class)
        for executor in self.executors.values():
            executor.apply(self._rules)

    def _emitted(self, sequence_id: int) -> int:
        sequence = self.sequences.get(sequence_id)
        if sequence is None or sequence.executor is None:
            return 0 if sequence is None else sequence.kept_tokens
        return self.executors[sequence.executor].planned_outputs(sequence)

    # --- steps ----------------------------------------------------------------------------------------------------

    def _end_step(self, event: StepEnded, now: float, commands: list[Command]) -> None:
        executor = self.executors.get(event.executor)
        if executor is None or not executor.steps or executor.steps[0].number != event.step:
            return
        self._fail(executor, event.failed, now, commands)
        step = executor.steps.pop(0)
        if event.keys or step.filled:
            executor.publish(step, event.keys)
        ended_at_s = now - event.ended_ago_s
        executor.step_time.observe(event.step_time_s, step.num_tokens)
        if executor.rules.paced:
            executor.costs.observe(step.shape, event.step_time_s)
        executor.last_ended_s = ended_at_s
        if not executor.steps or executor.steps[0].arms is not step.arms:  # else the next plan arms all of them anyway
            executor.arm(step, ended_at_s)
        finish = templates.no_finish(step.num_samples)
        rows = templates.rows(step.num_samples)
        if event.ended or step.ending:
            finish = finish.copy()
        if step.dropped:
            gone = [row for slot in step.dropped if (row := step.sampling_row_of(slot)) is not None]
            kept = templates.trues(step.num_samples).copy()
            kept[gone] = False
            rows = rows[kept]
        for sequence_id in event.ended:
            sequence = self.sequences.get(sequence_id)
            if sequence is not None and sequence.slot is not None and sequence.executor == executor.id:
                row = step.sampling_row_of(sequence.slot)
                if row is not None:
                    finish[row] = FinishReason.STOP
                    self._complete(sequence, executor.produced(sequence), "end of sequence", now, commands)
        for slot in step.ending:
            sequence = executor.columns.sequences[slot]
            if sequence is not None and sequence.life.state is State.ENDING:
                row = step.sampling_row_of(slot)
                finish[row] = FinishReason.LENGTH
                self._complete(sequence, sequence.max_output_tokens, "length", now, commands)
        executor.settle(step, now)
        if len(rows):
            if step.dropped:
                finish = finish[rows]
            commands.insert(0, Deliver(executor=executor.id, step=step.number, rows=rows, finish=finish))

    def _fail(self, executor: Executor, failed: dict[int, str], now: float, commands: list[Command]) -> None:
        """End the requests of these sequences. The step is still in flight, so that their rows of it are dropped."""
        for sequence_id, message in failed.items():
            sequence = self.sequences.get(sequence_id)
            if sequence is not None and sequence.executor == executor.id:
                request = sequence.request
                self._abandon(request, now, commands, outcome="error", code=OUTPUT_FAILED, message=message)

    def _plan(self, executor: Executor, now: float, commands: list[Command]) -> None:
        """Fill the executor's pipeline."""
        while len(executor.steps) < executor.max_steps_in_flight:
            draft = Draft(executor, now, starts_s=executor.arm_ahead(now))
            draft.build()
            if draft.num_rows:
                plan = finish_plan(executor, draft, now)
                number = executor.num_steps
                commands.append(StartStep(executor=executor.id, step=number, revision=self.revision, plan=plan))
            elif not draft.preempted:  # after a preemption there is room that a fresh plan can use
                break
        if executor.forget and not executor.steps:
            commands.append(Forget(executor=executor.id, released=executor.forget))
            executor.forget = []
