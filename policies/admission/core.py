"""Admission: what is let in, in which order, and what it is charged.

Owns the backlog, the in-flight window and the ledger. Knows counts, tenants and classes; does not know text, batches or
blocks, and reads no clock: `handle(event, now) -> commands` is the whole interface.

A new policy revision applies to what is decided after it: queued requests are classified when they are released, so
they follow the newest rules; released ones keep their class and prices; counters survive every change.
"""

from policies.admission.auto_window import AutoWindow
from policies.admission.cost import Prices
from policies.admission.drain import ServiceRate
from policies.admission.fairness import FairQueue, Queued, jain
from policies.admission.ledger import Charge, Ledger
from policies.admission.rules import AdmissionRules
from policies.admission.window import Window
from policies.commands import CancelReleased, Command, Refuse, Release, Settle, WakeAt, Withdraw
from policies.document.compile import compile_admission
from policies.document.loading import load_policy
from policies.events import (
    AdmissionEvent,
    Arrived,
    CancelRequested,
    CapacityChanged,
    PolicyApplied,
    RequestFinished,
    SchedulerLost,
    Started,
    TokensProduced,
    Woke,
)

NO_CAPACITY_RETRY_S = 1.0
NOTHING_DONE = ("error", "refused")
"""Outcomes that give the prompt back when no token was produced: the failure was ours."""


class AdmissionCore:
    """The decisions of the admission service. The first events are `Started` and `PolicyApplied`."""

    def __init__(self) -> None:
        self.queue = FairQueue()
        self.window = Window()
        self.auto_window: AutoWindow | None = None
        """What sizes the window, where the policy leaves that to it."""
        self.ledger = Ledger()
        self.revision = 0
        self._rules: AdmissionRules | None = None
        self._capacity = CapacityChanged(num_executors=0, kv_tokens=0, max_sequence_tokens=0)
        self._without_executors_since: float | None = 0.0
        self._arrivals = 0
        self._rate = ServiceRate()
        self._queued_cost = 0.0
        self._wakes_at: float | None = None
        self._longest_prompt_tokens = 0
        self._dearest = Prices(0.0, 0.0)

    def handle(self, event: AdmissionEvent, now: float) -> list[Command]:
        """Decide. `now` is core time in seconds and never goes backwards.

        Unknown requests and repeated ends are ignored. Every arrived request gets exactly one of `Refuse`, `Withdraw`
        and `Settle`.
        """
        commands: list[Command] = []
        if self.auto_window is not None and not self.queue.waiting:
            self.auto_window.idle()
        match event:
            case TokensProduced():
                if self.auto_window is not None:
                    self.auto_window.produced(event.sequences)
                self.ledger.tokens(event.sequences)
                self._rate.add(len(event.sequences) * self.rules.prices.output, now)
                # Charges may have changed whose turn it is, and the new head may fit where the old one did not.
            case Arrived():
                self._arrive(event, now, commands)
            case RequestFinished():
                self._finish(event.request, event.output_tokens, event.outcome, commands)
            case CancelRequested():
                self._cancel(event, commands)
            case CapacityChanged():
                self._set_capacity(event, now)
            case SchedulerLost():
                for charge in list(self.ledger.in_flight.values()):
                    self._finish(charge.request, charge.output_tokens, "scheduler_lost", commands)
                self._set_capacity(CapacityChanged(num_executors=0, kv_tokens=0, max_sequence_tokens=0), now)
            case Woke():
                self._wakes_at = None
                self._expire(now, commands)
            case PolicyApplied():
                self._apply(event)
            case Started():
                self._without_executors_since = now
        self._adapt_window(now)
        self._release(now, commands)
        self._wake_for_oldest(commands)
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
        return self._dearest.bound(self.window.peak_tokens, self._longest_prompt_tokens) / self.queue.smallest_weight

    @property
    def gap_ratio(self) -> float:
        """`gap` / `bound`: at most 1 while the policy has always been `vtc`; 0 before the first release."""
        bound = self.bound
        return self.gap / bound if bound else 0.0

    @property
    def jain(self) -> float:
        """Jain's index of the counters of backlogged tenants (service over weight, lifts included)."""
        return jain([account.counter for account in self.queue.backlogged()])

    # --- events ---------------------------------------------------------------------------------------------------

    def _arrive(self, event: Arrived, now: float, commands: list[Command]) -> None:
        request = event.request
        if request in self.queue.waiting or request in self.ledger.in_flight:
            return
        refusal = self._refusal(event, now)
        if refusal is not None:
            commands.append(refusal)
            return
        self._arrivals += 1
        queued = Queued(
            request,
            self._arrivals,
            self.queue.account(event.tenant),
            prompt_tokens=event.prompt_tokens,
            max_output_tokens=event.max_output_tokens,
            num_choices=event.num_choices,
            arrived_at_s=now,
            weight=event.weight,
            tier=event.tier,
            service_tier=event.service_tier,
            allowed_classes=event.allowed_classes,
        )
        self.queue.push(queued)
        self._queued_cost += self._cost(queued)

    def _refusal(self, event: Arrived, now: float) -> Refuse | None:
        if self._capacity.num_executors:
            if event.prompt_tokens + event.max_output_tokens > self._capacity.max_sequence_tokens:
                return self._too_long(event.request, event.prompt_tokens, event.max_output_tokens)
        elif self._without_capacity_s(now) > self.rules.queue.ttl_s:
            return self._no_capacity(event.request, now)
        limits = self.rules.queue
        account = self.queue.accounts.get(event.tenant)
        waiting = len(account.queue) if account else 0
        if waiting >= limits.per_tenant_max:
            sentence = (
                f'Tenant "{event.tenant}" already has {waiting} requests waiting'
                f" (queue.per_tenant_max is {limits.per_tenant_max})"
            )
        elif len(self.queue.waiting) >= limits.total_max:
            sentence = f"{len(self.queue.waiting)} requests are waiting (queue.total_max is {limits.total_max})"
        else:
            return None
        wait_s = self._rate.retry_after_s(self._queued_cost, event.request)
        return Refuse(event.request, "queue_full", f"{sentence}; retry in {wait_s:.0f} s.", wait_s)

    def _cancel(self, event: CancelRequested, commands: list[Command]) -> None:
        queued = self.queue.waiting.get(event.request)
        if queued is not None:
            self._drop(queued)
            commands.append(Withdraw(event.request, event.reason))
            return
        charge = self.ledger.in_flight.get(event.request)
        if charge is not None and not charge.cancelled:
            charge.cancelled = True
            commands.append(CancelReleased(event.request, event.reason))

    def _finish(self, request: int, output_tokens: int, outcome: str, commands: list[Command]) -> None:
        charge = self.ledger.in_flight.get(request)
        if charge is None:
            return
        refund_prompt = outcome in NOTHING_DONE and not output_tokens
        if self.auto_window is not None:
            self.auto_window.finished(request)
        refund = self.ledger.close(charge, output_tokens, refund_prompt=refund_prompt)
        if refund:
            self.queue.refund(charge.account, refund)
        self.window.give_back(charge.size_tokens)
        charge.account.num_in_flight -= 1
        self.queue.retire(charge.account)
        commands.append(Settle(request, charge.account.name, charge.prompt_tokens, output_tokens, outcome))

    def _set_capacity(self, event: CapacityChanged, now: float) -> None:
        if event.num_executors:
            self._without_executors_since = None
        elif self._without_executors_since is None:
            self._without_executors_since = now
        self._capacity = event
        self._size_window()

    def _apply(self, event: PolicyApplied) -> None:
        self.revision = event.revision
        rules = self._rules = compile_admission(load_policy(event.document))
        # Counters may still be apart by what the old prices allowed, so the bound keeps the dearest seen.
        self._dearest = self._dearest.at_least(rules.prices)
        self._queued_cost = sum(self._cost(queued) for queued in self.queue.waiting.values())
        self._size_window()

    def _expire(self, now: float, commands: list[Command]) -> None:
        ttl_s = self.rules.queue.ttl_s
        while self.queue.waiting:
            queued = next(iter(self.queue.waiting.values()))
            if queued.arrived_at_s + ttl_s > now:
                return
            ahead = self._queued_cost
            self._drop(queued)
            if self._capacity.num_executors:
                wait_s = self._rate.retry_after_s(ahead, queued.request)
                sentence = f"The request waited {ttl_s:g} s in the queue (queue.ttl_s) without being started"
                commands.append(
                    Refuse(queued.request, "queue_timeout", f"{sentence}; retry in {wait_s:.0f} s.", wait_s)
                )
            else:
                commands.append(self._no_capacity(queued.request, now))

    # --- decisions ------------------------------------------------------------------------------------------------

    def _release(self, now: float, commands: list[Command]) -> None:
        """Release while the next in order fits; nobody bypasses it."""
        while self.queue.waiting and self._capacity.num_executors:
            queued = self.rules.select(self.queue)
            if queued is None:
                return
            if queued.prompt_tokens + queued.max_output_tokens > self._capacity.max_sequence_tokens:
                # The executors that could have held it are gone, or it came before the first one.
                self._drop(queued)
                commands.append(self._too_long(queued.request, queued.prompt_tokens, queued.max_output_tokens))
                continue
            if not self.window.fits(queued.size_tokens):
                return
            self._let_in(queued, now, commands)

    def _let_in(self, queued: Queued, now: float, commands: list[Command]) -> None:
        rules, account = self.rules, queued.account
        if not self.ledger.in_flight:
            self._rate.begin(now)
        self._queued_cost -= self._cost(queued)
        self.queue.leave(queued)
        self.window.take(queued.size_tokens)
        if self.auto_window is not None:
            self.auto_window.released(queued.request, queued.prompt_tokens)
        self._longest_prompt_tokens = max(self._longest_prompt_tokens, queued.prompt_tokens)
        self.ledger.open(
            Charge(
                queued.request,
                account,
                queued.prompt_tokens,
                queued.size_tokens,
                queued.num_choices,
                rules.prices.prompt / queued.weight,
                rules.prices.output / queued.weight,
            )
        )
        self._rate.add(rules.prices.prompt * queued.prompt_tokens, now)
        slo_class = rules.classifier.classify(
            tenant=account.name,
            tier=queued.tier,
            service_tier=queued.service_tier,
            allowed=queued.allowed_classes,
        )
        alone = queued.size_tokens > self.window.limit_tokens
        reason = "alone: larger than the window" if alone else rules.select_reason
        commands.append(Release(queued.request, slo_class, now - queued.arrived_at_s, reason))

    def _drop(self, queued: Queued) -> None:
        self._queued_cost -= self._cost(queued)
        self.queue.remove(queued)
        self.queue.retire(queued.account)

    def _wake_for_oldest(self, commands: list[Command]) -> None:
        if not self.queue.waiting:
            return
        deadline = next(iter(self.queue.waiting.values())).arrived_at_s + self.rules.queue.ttl_s
        # An earlier wake-up still pending finds the newer deadline itself: one command per wake, not one per event.
        if self._wakes_at is None or deadline < self._wakes_at:
            self._wakes_at = deadline
            commands.append(WakeAt(deadline))

    def _size_window(self) -> None:
        if self._rules is None:
            return
        self.window.max_requests = self._rules.max_requests
        tokens = self._rules.window_tokens(self._capacity.kv_tokens)
        auto = self.auto_window
        if not self._rules.narrows_window or not tokens:
            self.auto_window = None
        elif auto is None or auto.pool_tokens != tokens:
            self.auto_window = AutoWindow(tokens)
        self.window.limit_tokens = tokens if self.auto_window is None else self.auto_window.limit_tokens

    def _adapt_window(self, now: float) -> None:
        auto = self.auto_window
        if auto is not None and self.queue.waiting and auto.look(now):
            self.window.limit_tokens = auto.limit_tokens

    def _cost(self, queued: Queued) -> float:
        return self.rules.prices.whole(queued.prompt_tokens, queued.output_tokens)

    def _without_capacity_s(self, now: float) -> float:
        since = self._without_executors_since
        return 0.0 if since is None else now - since

    def _too_long(self, request: int, prompt_tokens: int, max_output_tokens: int) -> Refuse:
        sentence = (
            f"This model's maximum context length is {self._capacity.max_sequence_tokens} tokens, but the request needs"
            f" {prompt_tokens + max_output_tokens} ({prompt_tokens} in the prompt, {max_output_tokens} for the output)."
            " Shorten the prompt or lower max_tokens."
        )
        return Refuse(request, "context_length_exceeded", sentence)

    def _no_capacity(self, request: int, now: float) -> Refuse:
        sentence = f"No executor has been available for {self._without_capacity_s(now):.0f} s; retry in 1 s."
        return Refuse(request, "no_capacity", sentence, NO_CAPACITY_RETRY_S)

    def check(self) -> None:
        """Assert the invariants: one place for each request, a window that sums up, counters that can be selected,
        and no capacity left idle beside a request that could use it.
        """
        self.queue.check()
        self.ledger.check()
        both = [request for request in self.queue.waiting if request in self.ledger.in_flight]
        assert not both, f"requests {both} are queued and in flight"
        reserved = sum(charge.size_tokens for charge in self.ledger.in_flight.values())
        assert reserved == self.window.reserved_tokens, "the window and the ledger disagree on the tokens in flight"
        assert len(self.ledger.in_flight) == self.window.num_requests, "the window and the ledger disagree on requests"
        assert self.window.peak_tokens >= reserved, "the largest window use was missed"
        for account in self.queue.accounts.values():
            released = sum(charge.account is account for charge in self.ledger.in_flight.values())
            assert released == account.num_in_flight, f"tenant {account.name} has {released} requests in flight"
        if self._capacity.num_executors and self.queue.waiting:
            head = self.rules.select(self.queue)
            assert head is not None
            assert not self.window.fits(head.size_tokens), f"request {head.request} waits although it fits"
