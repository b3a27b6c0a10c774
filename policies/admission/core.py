"""Admission: what is let in, in which order, and what it is charged.

Owns the backlog, the in-flight window and the ledger. Knows counts, tenants and classes; does not know text, batches or
blocks, and reads no clock: `handle(event, now) -> commands` is the whole interface.

A new policy revision applies to what is decided after it: queued requests are classified when they are released, so
they follow the newest rules; released ones keep their class and prices; counters survive every change.
"""

from math import inf

from msgspec.structs import replace

from policies.admission import refusals
from policies.admission.ages import Ages
from policies.admission.auto_window import AutoWindow, followed
from policies.admission.checking import check
from policies.admission.cost import Bound
from policies.admission.drain import ServiceRate
from policies.admission.ends import Ends
from policies.admission.expectation import expectation
from policies.admission.fairness import FairQueue
from policies.admission.intake import Intake
from policies.admission.kinds import LeastCounter
from policies.admission.lateness import Lateness
from policies.admission.ledger import Charge, Ledger
from policies.admission.nodes import Queued
from policies.admission.recovery import Recovery
from policies.admission.rules import AdmissionRules
from policies.admission.shared import hear
from policies.admission.sizes import Sizes
from policies.admission.turns import Turns
from policies.admission.window import Window, share
from policies.commands import Command, Refuse, Release, WakeAt, Withdraw
from policies.document.compile import compile_admission
from policies.document.loading import load_policy
from policies.events import (
    AdmissionEvent,
    Arrived,
    CancelRequested,
    CapacityChanged,
    CountersShared,
    Invalid,
    OverLimit,
    PolicyApplied,
    PrefixesFound,
    RequestFinished,
    Reserved,
    Restored,
    SchedulerHolds,
    SchedulerLost,
    Started,
    StoreReach,
    TokensProduced,
    Woke,
)


class AdmissionCore:
    """The decisions of the admission service. The first events are `Started` and `PolicyApplied`."""

    def __init__(self) -> None:
        self.queue = FairQueue(LeastCounter())
        self.window = Window()
        self.auto_window: AutoWindow | None = None
        """What sizes the window, where the policy leaves that to it."""
        self.ledger = Ledger(self.window)
        self.sizes = Sizes(self.ledger, self.window)
        self.intake = Intake()
        self.revision = 0
        self._rules: AdmissionRules | None = None
        self.capacity = CapacityChanged(num_executors=0, kv_tokens=0, max_sequence_tokens=0)
        self._without_executors_since: float | None = 0.0
        self._arrivals = 0
        self._newest: Queued | None = None
        """Put in the queue by the event at hand."""
        self.rate = ServiceRate()
        self.queued_cost = 0.0
        """Of all that waits."""
        self.ages = Ages(self.queue)
        self.lateness = Lateness(self)
        self._turns = Turns()
        self._wakes_at: float | None = None
        self.unit_bound = Bound()
        self.ends = Ends(self)
        self.recovery = Recovery(self)

    def handle(self, event: AdmissionEvent, now: float) -> list[Command]:
        """Decide. `now` is core time in seconds and never goes backwards.

        Unknown requests and repeated ends are ignored. Every arrived request gets exactly one of `Refuse`, `Withdraw`
        and `Settle`, an invalid one `Refuse` or `Counted`.
        """
        return self.take(event, now) + self.decide(now)

    def take(self, event: AdmissionEvent, now: float) -> list[Command]:
        """What an event brings about, without the releases that may follow from it."""
        commands: list[Command] = []
        if self.auto_window is not None and not self.queue.waiting:
            self.auto_window.idle()
        match event:
            case TokensProduced():
                if self.auto_window is not None:
                    self.auto_window.produced(event.sequences)
                self.rules.pace.step_ended()
                self.intake.produced(event.sequences, commands)
                self.lateness.produced(event.sequences, now)
                self.rate.add(self.ledger.tokens(event.sequences), now)
                self._refund(event.prefix_hits)
            case PrefixesFound():
                self._refund(event.hits)
            case Arrived():
                self._arrive(event, now, commands)
            case Reserved():
                self._reserved(event, now, commands)
            case OverLimit():
                estimate_s = self.rate.retry_after_s(self.queued_cost, event.request)
                self.intake.over_limit(event, self.rules, estimate_s, now, commands)
            case Invalid():
                if event.request not in self.intake.pending:
                    self.intake.count(event, self.rules, None, now, commands)
            case RequestFinished():
                self.ends.finished(event, now, commands)
            case CancelRequested():
                self._cancel(event, now, commands)
            case CapacityChanged():
                self._set_capacity(event, now)
            case SchedulerLost():
                self.ends.scheduler_lost(event, now, commands)
                self.recovery.nobody_came(commands)
                self._set_capacity(replace(self.capacity, num_executors=0, kv_tokens=0, max_sequence_tokens=0), now)
            case SchedulerHolds():
                self.recovery.agree(event, now, commands)
            case Restored():
                self.recovery.restore(event.state, now)
            case Woke():
                self._wakes_at = None
                self._expire(now, commands)
            case PolicyApplied():
                self._apply(event, now)
            case CountersShared() | StoreReach():
                hear(event, self.queue, self.intake, now)
            case Started():
                self._without_executors_since = now
                self.recovery.started(event.wall_s, now)
        self.sizes.heard(commands)
        return commands

    def decide(self, now: float) -> list[Command]:
        """The releases that can be made now, and what is told about the rest."""
        commands: list[Command] = []
        self._adapt_window(now)
        self._release(now, commands)
        newest, self._newest = self._newest, None
        if newest is not None and newest.request in self.queue.waiting:
            commands.append(expectation(newest, self))
        self._wake_for_oldest(commands)
        self.sizes.heard(commands)
        return commands

    @property
    def rules(self) -> AdmissionRules:
        """What the policy in force asks of admission.

        Raises:
            RuntimeError: an event came before the first `PolicyApplied`.
        """
        if self._rules is None:
            raise RuntimeError("admission needs a PolicyApplied before any other event than Started")
        return self._rules

    # --- what an operator sees: the theorem, live -----------------------------------------------------------------

    @property
    def gap(self) -> float:
        """Largest difference between counters of backlogged tenants, in cost units per weight; O(tenants)."""
        return self.queue.gap()

    @property
    def bound(self) -> float:
        """VTC's bound on `gap`: U over the smallest weight, with the sizes really in flight together so far."""
        return self.queue.together(self.unit_bound.value(self.window.peak_tokens) / self.queue.smallest_weight)

    @property
    def gap_ratio(self) -> float:
        """`gap` / `bound`: at most 1 while the policy has always been `vtc`; 0 before the first release."""
        return self.gap / self.bound if self.bound else 0.0

    # --- events ---------------------------------------------------------------------------------------------------

    def _arrive(self, event: Arrived, now: float, commands: list[Command]) -> None:
        request = event.request
        if request in self.queue.waiting or self.intake.asks_for(event):
            return
        if (event.resent and self.ends.resent(event, commands)) or request in self.ledger.in_flight:
            return
        refusal = self._refusal(event, now, now)
        if refusal is not None and refusal.code in refusals.MISTAKES:
            self.intake.count(event, self.rules, refusal, now, commands)
        elif refusal is not None:
            commands.append(refusal)
        else:
            expected_tokens, since_s = self.sizes.expected_tokens(event), now - event.waited_s
            # Whatever fits has been released, so whoever waits waits for room.
            saturated = bool(self.queue.waiting)
            if not self.intake.ask(event, self.rules, expected_tokens, since_s, commands, is_saturated=saturated):
                self._enqueue(event, expected_tokens, since_s, now)

    def _reserved(self, event: Reserved, now: float, commands: list[Command]) -> None:
        pending = self.intake.reserved(event, commands)
        if pending is None or not isinstance(pending.event, Arrived):
            return
        # Others may have come in while a store far away was asked.
        if (refusal := self._refusal(pending.event, pending.since_s, now)) is None:
            self._enqueue(pending.event, pending.expected_tokens, pending.since_s, now)
        else:
            self._give_back(refusal, commands)

    def _enqueue(self, event: Arrived, expected_tokens: int, arrived_at_s: float, now: float) -> None:
        self._arrivals += 1
        queued = Queued.of(event, self._arrivals, expected_tokens, arrived_at_s=arrived_at_s, now=now)
        self._newest = queued
        self.queue.push(queued)
        self.queued_cost += self._cost(queued)
        self.ages.joined(queued, now)
        self.lateness.joined(queued, now)

    def _refusal(self, event: Arrived, arrived_at_s: float, now: float) -> Refuse | None:
        if self.capacity.num_executors:
            if (refusal := self._too_long(event)) is not None:
                return refusal
        elif self._without_capacity_s(now) > self.rules.queue.ttl_s:
            return refusals.no_capacity(event.request, event.tenant, self._without_capacity_s(now))
        account = self.queue.accounts.get(event.tenant)
        num_own, num_waiting = account.num_waiting if account else 0, len(self.queue.waiting)
        wait_s = self.rate.retry_after_s(self.queued_cost, event.request)
        full = refusals.queue_full(
            event,
            self.rules.queue,
            num_admissions=self.capacity.num_admissions,
            num_own=num_own,
            num_waiting=num_waiting,
            wait_s=wait_s,
        )
        return full or self.lateness.on_arrival(event, arrived_at_s, now)

    def _cancel(self, event: CancelRequested, now: float, commands: list[Command]) -> None:
        if self.intake.cancel(event.request, event.reason, commands):
            return
        queued = self.queue.waiting.get(event.request)
        if queued is not None:
            self._drop(queued, now)
            commands.append(Withdraw(event.request, event.reason))
            self.intake.settle(event.request, commands, num_requests=1)
            return
        self.ends.cancel(event, now, commands)

    def _set_capacity(self, event: CapacityChanged, now: float) -> None:
        if event.num_executors:
            self._without_executors_since = None
        elif self._without_executors_since is None:
            self._without_executors_since = now
        self.capacity = event
        self.lateness.capacity(event.num_executors, now)
        self._size_window()

    def _apply(self, event: PolicyApplied, now: float) -> None:
        """What a section remembers goes on as long as the document says the same of it; counters always do."""
        self.revision = event.revision
        before, rules = self._rules, compile_admission(load_policy(event.document))
        self._rules = rules
        if self.queue.follow(rules.fairness, rules.order, None if before is None else before.fairness, now):
            self.ledger.move(self.queue)
        self.sizes.follow(rules)
        self.unit_bound.allow(rules.cost)
        self.queued_cost = sum(self._cost(queued) for queued in self.queue.waiting.values())
        self.lateness.follow(now)
        self._size_window()

    def _refund(self, prefix_hits: list[tuple[int, int]]) -> None:
        for charge, refund in self.ledger.hits(prefix_hits):
            self.queue.refund(charge.leaf, charge.weight, refund)
            self.unit_bound.refunds_prompts()

    def _expire(self, now: float, commands: list[Command]) -> None:
        ttl_s = self.rules.queue.ttl_s
        self.ends.expire(now, commands)
        self.intake.expire(now, ttl_s, commands)
        for queued, refusal in self.lateness.overdue(now):
            self._drop(queued, now)
            self._give_back(refusal, commands)
        while (oldest := self.ages.oldest()) is not None and oldest.arrived_at_s + ttl_s <= now:
            request, tenant = oldest.request, oldest.tenant
            refusal = refusals.no_capacity(request, tenant, self._without_capacity_s(now))
            if self.capacity.num_executors:
                wait_s = self.rate.retry_after_s(self.queued_cost, request)
                refusal = refusals.timed_out(request, tenant, ttl_s, wait_s)
            self._drop(oldest, now)
            self._give_back(refusal, commands)

    # --- decisions ------------------------------------------------------------------------------------------------

    def _release(self, now: float, commands: list[Command]) -> None:
        """Release while the next in order fits; nobody bypasses it."""
        if not self.queue.waiting or not self.capacity.num_executors or self.rules.pace.holds_back(self.window):
            return
        rules, order = self.rules, self.queue.order
        order.begin()
        while (queued := order.next(self.queue)) is not None:
            if (refusal := self._too_long(queued) or self.lateness.on_its_turn(queued, now)) is not None:
                # The executors that could have held it are gone, it came before the first one, or it is late by now.
                self._drop(queued, now)
                self._give_back(refusal, commands)
                continue
            predicted_tokens, size_tokens = self.sizes.needs(queued, rules)
            if not self.sizes.fits(queued, size_tokens, rules):
                order.refused()
                self._turns.blocked(queued, now)
                return
            self._let_in(queued, predicted_tokens, size_tokens, now, commands)

    def _let_in(
        self, queued: Queued, predicted_tokens: int, size_tokens: int, now: float, commands: list[Command]
    ) -> None:
        rules, alone = self.rules, size_tokens > self.window.limit_tokens and not self.window.num_requests
        if not self.ledger.in_flight:
            self.rate.begin(now)
        cost = self._cost(queued)
        self.queued_cost -= cost
        self.queue.leave(queued, now)
        self.lateness.released(queued, cost, now)
        rules.pace.released(queued.prompt_tokens)
        if self.auto_window is not None:
            self.auto_window.released(queued.request, queued.prompt_tokens)
        self.unit_bound.released(queued.prompt_tokens)
        slo_class, place = rules.class_of(queued), self.window.take(size_tokens)
        self.ledger.open(Charge.of(queued, rules.cost, predicted_tokens, place, slo_class))
        self.rate.add(rules.cost.whole(queued.prompt_tokens, 0), now)
        reason = "alone: larger than the window" if alone else self.queue.order.reason
        limits = self.intake.released(queued.request, commands)
        told = limits, self._turns.waits_s(queued, now), queued.leaf.counter
        commands.append(Release(queued.request, slo_class, now - queued.arrived_at_s, reason, *told))

    def _drop(self, queued: Queued, now: float) -> None:
        self.queued_cost -= self._cost(queued)
        self.queue.remove(queued)
        self.queue.retire(queued.leaf, now)

    def _give_back(self, refusal: Refuse, commands: list[Command]) -> None:
        """Refuse a request whose limits were taken; one that is to blame itself still counts."""
        commands.append(refusal)
        self.intake.settle(refusal.request, commands, num_requests=1 if refusal.code in refusals.MISTAKES else 0)

    def _wake_for_oldest(self, commands: list[Command]) -> None:
        since, oldest = self.intake.oldest_s(), self.ages.oldest()
        if oldest is not None:
            since = min(since, oldest.arrived_at_s)
        deadline = min(self.ends.earliest_s(), self.lateness.next_due_s())
        if since != inf:
            deadline = min(deadline, since + self.rules.queue.ttl_s)
        if deadline == inf:
            return
        # An earlier wake-up still pending finds the newer deadline itself: one command per wake, not one per event.
        if self._wakes_at is None or deadline < self._wakes_at:
            self._wakes_at = deadline
            commands.append(WakeAt(deadline))

    def _size_window(self) -> None:
        if self._rules is None:
            return
        self.window.max_requests = max(1, self._rules.max_requests // self.capacity.num_admissions)
        tokens = share(self._rules.window_tokens(self.capacity.kv_tokens), self.capacity.num_admissions)
        self.auto_window = followed(self.auto_window, tokens) if self._rules.narrows_window else None
        self.window.limit_tokens = tokens if self.auto_window is None else self.auto_window.limit_tokens
        self.queue.order.size(self.window.limit_tokens)

    def _adapt_window(self, now: float) -> None:
        auto = self.auto_window
        if auto is None or not self.queue.waiting or not self.capacity.num_executors:
            return
        if auto.look(now, self.window.reserved_tokens):
            self.window.limit_tokens = auto.limit_tokens
            self.queue.order.size(auto.limit_tokens)

    def _cost(self, queued: Queued) -> float:
        return self.rules.cost.whole(queued.prompt_tokens, queued.expected_tokens)

    def _without_capacity_s(self, now: float) -> float:
        return 0.0 if self._without_executors_since is None else now - self._without_executors_since

    def _too_long(self, asked: Arrived | Queued) -> Refuse | None:
        most_tokens = self.capacity.max_sequence_tokens
        if asked.prompt_tokens + asked.max_output_tokens <= most_tokens:
            return None
        return refusals.too_long(asked.request, asked.tenant, asked.prompt_tokens, asked.max_output_tokens, most_tokens)

    def check(self) -> None:
        """Assert the invariants (`policies.admission.checking`)."""
        check(self)
