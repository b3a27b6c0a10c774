"""What a request is expected to take: output charged at its release, and its size in the window.

Owns what was learnt of outputs: the predictor of `fairness.predictor`, and bounds for requests that declare no maximum,
so that the window need not hold a whole context for each. What outgrows its bound is never cut.
"""

from collections.abc import Collection, Iterable

from policies.admission.ledger import Charge, Ledger
from policies.admission.nodes import Queued
from policies.admission.predictors import Nothing, Predictor
from policies.admission.rules import AdmissionRules
from policies.admission.window import Window
from policies.commands import Command, Refuse, Withdraw
from policies.document.memory import Prediction
from policies.events import Arrived
from policies.scheduling.lengths.conformal import INFORMED, Conformal
from policies.scheduling.lengths.predicted import Features

FIRST_TOKENS = 1024
"""Bound of a choice that declares none until enough have ended to know better: with the whole context for each, one
would run at a time.
"""
FINISHED = "finished"


class Sizes:
    """Sizes under the policy in force.

    Args:
        ledger: what is in flight.
        window: where it takes its place.
    """

    def __init__(self, ledger: Ledger, window: Window) -> None:
        self._ledger = ledger
        self._window = window
        self._rules: AdmissionRules | None = None
        self._predictor: Predictor = Nothing()
        self._lengths = Conformal(Prediction(), self._emitted)
        self._bounded: dict[int, int] = {}
        """Requests that declared nothing, and their choices."""
        self._num_ended = 0

    def follow(self, rules: AdmissionRules) -> None:
        """These rules hold from now on. What was learnt goes on as long as they say the same of it."""
        before, self._rules = self._rules, rules
        if before is None or before.fairness.predictor != rules.fairness.predictor:
            self._predictor = rules.predictor
        if before is None or before.prediction != rules.prediction:
            self._lengths = Conformal(rules.prediction, self._emitted)
            self._bounded.clear()
            self._num_ended = 0

    def expected_tokens(self, event: Arrived) -> int:
        """Output over all choices that a request is sized by: what it declares, else a bound from those before it."""
        if event.declared or event.request in self._bounded:
            return event.num_choices * event.max_output_tokens
        features = Features(event.tenant, "", event.prompt_tokens, event.max_output_tokens, 0, None)
        bound = self._lengths.predict(event.request, features).upper
        if self._num_ended < INFORMED:
            bound = min(bound, FIRST_TOKENS)
        self._bounded[event.request] = event.num_choices
        return event.num_choices * bound

    def needs(self, queued: Queued, rules: AdmissionRules) -> tuple[int, int]:
        """(output charged at release, tokens of the window) if it were released now."""
        predicted_tokens = self._predictor.output_tokens(queued)
        return predicted_tokens, rules.reserve.size_tokens(queued, predicted_tokens)

    def fits(self, queued: Queued, size_tokens: int, rules: AdmissionRules) -> bool:
        """Whether it may be released now with this size."""
        if not rules.pace.has_room(queued.prompt_tokens, self._window):
            return False
        return rules.reserve.fits(self._window, self._ledger.in_flight.values(), queued, size_tokens)

    def ended(self, charge: Charge, outcome: str) -> None:
        """A request ended, with the output of its charge."""
        if outcome == FINISHED:
            self._predictor.ended(charge.tenant, charge.num_choices, charge.output_tokens)
        num_choices = self._bounded.pop(charge.request, None)
        if num_choices is not None:
            self._num_ended += outcome == FINISHED
            num_tokens = round(charge.output_tokens / num_choices)
            self._lengths.observe(charge.request, num_tokens, cut_short=outcome != FINISHED)

    def heard(self, commands: Iterable[Command]) -> None:
        """What was decided: from requests that are never released nothing is learnt."""
        if self._bounded:
            for command in commands:
                if isinstance(command, Refuse | Withdraw) and self._bounded.pop(command.request, None) is not None:
                    self._lengths.forget(command.request)

    def check(self, here: Collection[int]) -> None:
        """Assert that nothing is kept of requests other than these."""
        gone = [request for request in self._bounded if request not in here]
        assert not gone, f"requests {gone} are gone and their bounds are not"

    def _emitted(self, request: int) -> int:
        """Output tokens of a choice so far."""
        charge = self._ledger.in_flight.get(request)
        return charge.output_tokens // charge.num_choices if charge is not None else 0
