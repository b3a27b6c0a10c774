"""How a request in flight ends, or goes on after whoever computed it was lost.

Owns the requests that are in flight and that nobody computes: they stay charged and keep their place in the window for
as long as their gateway may send them again. Knows attempts and counts; does not know streams, nor why one broke.
"""

from math import inf
from typing import TYPE_CHECKING

from policies.admission import refusals
from policies.admission.ledger import LOST, NOTHING_DONE, Charge
from policies.commands import CancelReleased, Command, Resume, Strand
from policies.events import Arrived, CancelRequested, RequestFinished, SchedulerLost

if TYPE_CHECKING:
    from policies.admission.core import AdmissionCore

CANCELLED = "cancelled"


class Ends:
    """The ends of what a core has released.

    Attributes:
        stranded: requests in flight that nobody computes, and until when (core time) they are waited for.
    """

    def __init__(self, core: "AdmissionCore") -> None:
        self._core = core
        self.stranded: dict[int, float] = {}

    # --- ends -----------------------------------------------------------------------------------------------------

    def finished(self, event: RequestFinished, now: float, commands: list[Command]) -> None:
        """The scheduler is done with a request: settle it, unless it was gone on with since, or may be."""
        charge = self._core.ledger.in_flight.get(event.request)
        if charge is None or event.attempt < charge.attempt:
            return
        if event.resume_s and not charge.cancelled:
            self.lose(charge, event.resume_s, now, commands)
        else:
            self.settle(charge, event.output_tokens, event.outcome, now, commands)

    def cancel(self, event: CancelRequested, now: float, commands: list[Command]) -> None:
        """A request in flight, if it is, is not wanted any more."""
        charge = self._core.ledger.in_flight.get(event.request)
        if charge is None or charge.cancelled:
            return
        if charge.request in self.stranded:
            # Whoever leaves with nothing while nobody computes it pays nothing.
            self.settle(charge, charge.output_tokens, CANCELLED if charge.output_tokens else LOST, now, commands)
            return
        charge.cancelled = True
        commands.append(CancelReleased(event.request, event.reason))

    def scheduler_lost(self, event: SchedulerLost, now: float, commands: list[Command]) -> None:
        """Nothing of what is in flight is computed any more."""
        for charge in list(self._core.ledger.in_flight.values()):
            self.lose(charge, event.resume_s, now, commands)

    def lose(self, charge: Charge, resume_s: float, now: float, commands: list[Command]) -> None:
        """Nobody computes a request: wait for its gateway, or settle it as delivered so far."""
        if charge.request in self.stranded:
            return
        if not resume_s or charge.cancelled:
            self.settle(charge, charge.output_tokens, LOST, now, commands)
            return
        self.stranded[charge.request] = now + resume_s
        commands.append(Strand(charge.request, charge.attempt))

    def expire(self, now: float, commands: list[Command]) -> None:
        """Nobody is waited for longer than was said."""
        for request in [request for request, until_s in self.stranded.items() if until_s <= now]:
            charge = self._core.ledger.in_flight[request]
            self.settle(charge, charge.output_tokens, LOST, now, commands)

    def earliest_s(self) -> float:
        """Until when the first of the stranded is waited for; infinite: there are none."""
        return min(self.stranded.values(), default=inf)

    def settle(self, charge: Charge, output_tokens: int, outcome: str, now: float, commands: list[Command]) -> None:
        """A request in flight is over, with so many tokens that count."""
        core = self._core
        self.stranded.pop(charge.request, None)
        refund_prompt = outcome in NOTHING_DONE and not output_tokens
        if core.auto_window is not None:
            core.auto_window.finished(charge.request)
        if refund_prompt:
            core.unit_bound.refunds_prompts()
        refund = core.ledger.close(charge, output_tokens, refund_prompt=refund_prompt)
        if refund:
            core.queue.refund(charge.leaf, charge.weight, refund)
        core.lateness.ended(charge.request, now)
        core.window.give_back(charge.place)
        core.queue.end(charge.leaf, now)
        core.sizes.ended(charge, outcome)
        commands.append(charge.settlement(outcome))
        core.intake.settle(charge.request, commands, int(not refund_prompt), charge.prompt_tokens, output_tokens)

    # --- going on -------------------------------------------------------------------------------------------------

    def resent(self, event: Arrived, commands: list[Command]) -> bool:
        """A gateway has sent a request again. False: it is as good as new.

        Whoever comes for a further attempt has all that counts of the earlier ones. For the same attempt it is sent on
        again, if it never got there: a scheduler that has it already takes no notice.
        """
        charge = self._core.ledger.in_flight.get(event.request)
        if charge is None:
            if event.made_tokens:
                commands.append(refusals.settled(event))
            return bool(event.made_tokens)
        if event.attempt < charge.attempt or charge.cancelled:
            return True
        if event.attempt > charge.attempt or charge.request in self.stranded:
            self.stranded.pop(charge.request, None)
            charge.attempt = event.attempt
            self._core.recovery.catch_up(charge, event.made_tokens, charge.cached_tokens)
            self._core.intake.reached(charge.request, event.made_tokens, commands)
        commands.append(Resume(charge.request, charge.slo_class, event.waited_s))
        return True

    def check(self) -> None:
        """Assert that whoever is waited for is in flight."""
        gone = [request for request in self.stranded if request not in self._core.ledger.in_flight]
        assert not gone, f"requests {gone} are waited for and not in flight"
