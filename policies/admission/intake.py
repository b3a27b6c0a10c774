"""From arrival to the queue: the limits that a request is held to, and what it has taken of them until it ends.

Owns the reservations that a store has not answered yet, and those of every request that waits or is in flight
(fairness specification, 6.3). Knows items and counts of tokens; does not know what is left of a limit, nor who is next.

A request is held to the limits of the class that it has when it arrives; it may be released under another, if the
policy changes while it waits.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from math import ceil, inf

import msgspec
from msgspec import Struct

from policies.admission import refusals
from policies.admission.limits.items import Dimension, LimitItem, LimitState, Mode
from policies.admission.limits.rules import (
    OUTPUT_DIMENSIONS,
    Asked,
    items_of,
    items_of_a_mistake,
)
from policies.admission.rules import AdmissionRules
from policies.commands import Adjust, Command, Counted, Refuse, Reserve, Withdraw
from policies.events import Arrived, HeldAtScheduler, Invalid, OverLimit, Reserved, StoreReach

STEP_TOKENS = 64
"""Output above what was expected is taken in steps of so many tokens, so that not every token is a message."""


class Pending(Struct, eq=False):
    """A request whose items have been asked for."""

    event: Arrived | Invalid
    items: tuple[LimitItem, ...]
    expected_tokens: int
    since_s: float
    answer: Refuse | None = None
    """A mistake is counted first and refused with this then."""
    counts_as: int | None = None
    """None: it waits for the answer. Else it has had its last one, what is taken goes back, and so many requests stay
    counted.
    """


class Taken(Struct, eq=False):
    """What a request that waits or is in flight has taken."""

    request: int
    items: tuple[LimitItem, ...]
    """With the amounts that the store has now."""
    expected_tokens: int
    """Output over all choices that is in these amounts."""
    most_tokens: int
    """Output over all choices that there can ever be."""
    num_choices: int
    states: tuple[LimitState, ...] = ()
    """What was left then, for the client to be told."""
    produced: int = 0
    """Output so far; counted only where it may pass what was expected."""


class Intake:
    """What is between `Arrived` and the queue, and the limits' side of a request's life.

    Invariant: every amount taken is given back or settled exactly once; with nothing pending, waiting or in flight,
    nothing is taken here.
    """

    def __init__(self) -> None:
        self.pending: OrderedDict[int, Pending] = OrderedDict()
        """By request, oldest first."""
        self.taken: dict[int, Taken] = {}
        """By request."""
        self.reach = StoreReach()
        """The store, as far as it is out of reach."""
        self._growing: dict[int, Taken] = {}
        """By sequence: requests that may produce more than they took."""

    # --- asking ---------------------------------------------------------------------------------------------------

    def ask(
        self,
        event: Arrived,
        rules: AdmissionRules,
        expected_tokens: int,
        now: float,
        commands: list[Command],
        *,
        is_saturated: bool,
    ) -> bool:
        """Ask for all that a request takes; False: no limit applies to it."""
        if self.reach.refuses == "all":
            commands.append(refusals.store_lost(event, self.reach.lost_s))
            return True
        if not rules.limits:
            return False
        slo_class = rules.class_of(event)
        asked = Asked(
            event.tenant, event.tier, event.project, event.key, slo_class, event.prompt_tokens, expected_tokens
        )
        modes: tuple[Mode, ...] = ("hard", "only_when_saturated") if is_saturated else ("hard",)
        items = items_of(rules.limits, asked, modes)
        return self._ask(Pending(event, items, expected_tokens, now), commands)

    def count(
        self,
        event: Arrived | Invalid,
        rules: AdmissionRules,
        answer: Refuse | None,
        now: float,
        commands: list[Command],
    ) -> None:
        """A request that cannot be served counts as one of its caller's, then it is answered: None by whoever sent
        `Invalid`.
        """
        asked = Asked(event.tenant, event.tier, event.project, event.key, "")
        pending = Pending(event, items_of_a_mistake(rules.limits, asked), 0, now, answer)
        if not self._ask(pending, commands):
            commands.append(Counted(event.request, tenant=event.tenant) if answer is None else answer)

    def _ask(self, pending: Pending, commands: list[Command]) -> bool:
        if not pending.items:
            return False
        if self.reach.refuses != "nothing":
            # A mistake is a mistake all the same; it is not counted then.
            if pending.answer is None and isinstance(pending.event, Arrived):
                commands.append(refusals.store_lost(pending.event, self.reach.lost_s))
                return True
            return False
        self.pending[pending.event.request] = pending
        commands.append(Reserve(pending.event.request, pending.items))
        return True

    def asks_for(self, event: Arrived) -> bool:
        """Whether a request that comes has been asked for already. One that was withdrawn when its gateway was away,
        and is sent again before the store has answered, is wanted after all: that answer is for it.
        """
        pending = self.pending.get(event.request)
        if pending is None:
            return False
        if event.resent and isinstance(pending.event, Arrived):
            pending.event, pending.counts_as = event, None
        return True

    # --- answers --------------------------------------------------------------------------------------------------

    def reserved(self, event: Reserved, commands: list[Command]) -> Pending | None:
        """The store has taken it: the request to put in the queue, if that is what it waited for."""
        pending = self.pending.pop(event.request, None)
        if pending is None:
            return None
        arrived = pending.event
        if isinstance(arrived, Invalid):
            if pending.counts_as is None:
                commands.append(Counted(event.request, event.limits, arrived.tenant))
            return None
        if pending.answer is not None:
            if pending.counts_as is None:
                commands.append(msgspec.structs.replace(pending.answer, limits=event.limits))
            return None
        taken = Taken(
            event.request,
            pending.items,
            pending.expected_tokens,
            arrived.num_choices * arrived.max_output_tokens,
            arrived.num_choices,
            event.limits,
        )
        self.resume(taken, 0)
        if pending.counts_as is not None:
            self.settle(event.request, commands, num_requests=pending.counts_as)
            return None
        return pending

    def over_limit(
        self, event: OverLimit, rules: AdmissionRules, estimate_s: float, now: float, commands: list[Command]
    ) -> None:
        """The store has taken nothing; `estimate_s` is said where the limit cannot know the wait."""
        pending = self.pending.pop(event.request, None)
        if pending is None or pending.counts_as is not None:
            return
        tenant = pending.event.tenant
        if event.never_fits and pending.answer is None and isinstance(pending.event, Arrived):
            self.count(pending.event, rules, refusals.exceeds_limit(event, tenant), now, commands)
            return
        wait_s = estimate_s if event.wait_s is None else event.wait_s
        commands.append(refusals.over_limit(event, tenant, wait_s))

    def cancel(self, request: int, reason: str, commands: list[Command]) -> bool:
        """A request is not wanted any more; False: it is not pending."""
        pending = self.pending.get(request)
        if pending is None:
            return False
        if pending.counts_as is None:
            pending.counts_as = 1
            commands.append(Withdraw(request, reason))
        return True

    def expire(self, now: float, ttl_s: float, commands: list[Command]) -> None:
        """Nobody waits for a store longer than for anything else."""
        for request, pending in self.pending.items():
            if pending.since_s + ttl_s > now:
                return
            if pending.counts_as is None:
                pending.counts_as = 0
                commands.append(refusals.unchecked(request, pending.event.tenant, ttl_s))

    def oldest_s(self) -> float:
        """Since when the oldest one waits for the store; infinite: none does."""
        if not self.pending:
            return inf
        return next((pending.since_s for pending in self.pending.values() if pending.counts_as is None), inf)

    def resume(self, taken: Taken, produced: int) -> None:
        """A request has taken this, and produced so many output tokens since."""
        taken.produced = produced
        self.taken[taken.request] = taken
        if taken.expected_tokens < taken.most_tokens:
            self._growing.update((taken.request + choice, taken) for choice in range(taken.num_choices))

    def take_again(self, held: HeldAtScheduler, rules: AdmissionRules, commands: list[Command]) -> None:
        """A request was released, and the process that knew what it had taken ended before that was kept. It takes the
        same again, whatever is left, but of its output no more than it has made, and more as it goes on.
        """
        most_tokens = held.num_choices * held.max_output_tokens
        expected_tokens = max(held.output_tokens, min(held.output_tokens + STEP_TOKENS, most_tokens))
        asked = Asked(
            held.tenant, held.tier, held.project, held.key, held.slo_class, held.prompt_tokens, expected_tokens
        )
        items = tuple(item for item in items_of(rules.limits, asked, ("hard",)) if item.dimension != "queued")
        if items:
            nothing = (msgspec.structs.replace(item, amount=0) for item in items)
            commands.append(Adjust(held.request, tuple(zip(nothing, (item.amount for item in items), strict=True))))
            taken = Taken(held.request, items, expected_tokens, most_tokens, held.num_choices)
            self.resume(taken, held.output_tokens)

    # --- what was taken -------------------------------------------------------------------------------------------

    def states(self, request: int) -> tuple[LimitState, ...]:
        """What was left when it came."""
        taken = self.taken.get(request)
        return () if taken is None else taken.states

    def released(self, request: int, commands: list[Command]) -> tuple[LimitState, ...]:
        """It no longer waits; what was left when it came, for its client."""
        taken = self.taken.get(request)
        if taken is None:
            return ()
        self._correct(taken, {"queued": 0}, commands)
        states, taken.states = taken.states, ()
        return states

    def produced(self, sequences: Iterable[int], commands: list[Command]) -> None:
        """Output tokens came: where they pass what was expected, more is taken, whatever is left. A stream is never
        cut for a limit; the next request waits for the debt.
        """
        if not self._growing:
            return
        for sequence in sequences:
            taken = self._growing.get(sequence)
            if taken is not None:
                taken.produced += 1
                if taken.produced > taken.expected_tokens:
                    self._grow(taken, commands)

    def reached(self, request: int, output_tokens: int, commands: list[Command]) -> None:
        """A request has so many output tokens by now, whatever was heard of them."""
        taken = self._growing.get(request)
        if taken is not None:
            taken.produced = output_tokens
            if output_tokens > taken.expected_tokens:
                self._grow(taken, commands)

    def _grow(self, taken: Taken, commands: list[Command]) -> None:
        more_tokens = ceil((taken.produced - taken.expected_tokens) / STEP_TOKENS) * STEP_TOKENS
        taken.expected_tokens += more_tokens
        more = {
            item.dimension: item.amount + more_tokens for item in taken.items if item.dimension in OUTPUT_DIMENSIONS
        }
        self._correct(taken, more, commands)

    def settle(
        self,
        request: int,
        commands: list[Command],
        num_requests: int,
        prompt_tokens: int = 0,
        output_tokens: int = 0,
    ) -> None:
        """A request has ended: what it really took, the rest goes back."""
        taken = self.taken.pop(request, None)
        if taken is None:
            return
        for choice in range(taken.num_choices):
            self._growing.pop(request + choice, None)
        actual: dict[Dimension, int] = {
            "requests": num_requests,
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            "total_tokens": prompt_tokens + output_tokens,
            "concurrency": 0,
            "queued": 0,
        }
        self._correct(taken, actual, commands)

    def _correct(self, taken: Taken, actual: Mapping[Dimension, int], commands: list[Command]) -> None:
        changed = tuple(
            (item, actual[item.dimension])
            for item in taken.items
            if actual.get(item.dimension, item.amount) != item.amount
        )
        if not changed:
            return
        commands.append(Adjust(taken.request, changed))
        taken.items = tuple(
            msgspec.structs.replace(item, amount=actual.get(item.dimension, item.amount)) for item in taken.items
        )

    def check(self, waiting: Iterable[int], in_flight: Iterable[int]) -> None:
        """Assert that whoever has taken something is still here, and that nobody is here twice."""
        here = {*waiting, *in_flight}
        for request in self.pending:
            assert request not in here, f"request {request} was let in before its limits were checked"
        for request, taken in self.taken.items():
            assert request in here, f"request {request} is gone and its reservation is not"
            assert taken.expected_tokens >= taken.produced, f"request {request} produced more than it took"
        for sequence, taken in self._growing.items():
            assert taken in self.taken.values(), f"sequence {sequence} of a request that is gone may still grow"
