"""What every predictor is asked and answers.

Owns the shapes. Knows counts and names; does not know text, steps or blocks.
"""

from collections.abc import Callable
from math import ceil, floor
from typing import NamedTuple, Protocol


class Features(NamedTuple):
    """What is known of a sequence when it is released."""

    tenant: str
    slo_class: str
    prompt_tokens: int
    max_output_tokens: int
    number: int
    """Order of release; what is drawn for it depends on nothing else, so that replays agree."""
    true_tokens: int | None
    """How many tokens it will produce; only replays know, and only predictors of kinds for replays look."""


class Predicted(NamedTuple):
    """Output tokens: `1 <= lower <= point <= upper <= max_output_tokens`."""

    lower: int
    point: int
    upper: int


class Predictor(Protocol):
    """Makes intervals, and may learn from how sequences end."""

    def predict(self, sequence: int, features: Features) -> Predicted:
        """The interval of a sequence that is released now."""

    def observe(self, sequence: int, num_tokens: int, *, cut_short: bool) -> None:
        """A sequence ended with this many tokens; `cut_short`: not by itself nor at its limit."""


Emitted = Callable[[int], int]
"""Output tokens of a sequence so far."""


def within(lower: float, point: float, upper: float, longest: int) -> Predicted:
    """Bounds as whole numbers, rounded outwards and cut to what was asked for at most."""
    low = min(max(floor(lower), 1), longest)
    high = longest if upper >= longest else max(ceil(upper), low)
    middle = high if point >= high else max(round(point), low)
    return Predicted(low, middle, high)
