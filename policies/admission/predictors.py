"""How many output tokens a request is charged for at its release (`fairness.predictor`).

Owns what is remembered of tenants' outputs. A prediction changes the order only: what comes corrects the charge. The
truth comes with a replay; documents that need it do not load in a live service.
"""

from collections import OrderedDict, deque
from typing import Protocol

from policies.admission.nodes import Queued
from policies.document.fairness import LengthPredictor

MAX_TENANTS = 65_536
"""Remembered; the one that asked longest ago is forgotten beyond that, and begins at nothing again."""


class Predictor(Protocol):
    """Guesses an output, over all choices."""

    def output_tokens(self, queued: Queued) -> int:
        """Tokens that a request is expected to produce. Asking again before it ends answers the same."""

    def ended(self, tenant: str, num_choices: int, output_tokens: int) -> None:
        """A request ended with so many tokens over all its choices."""


class Unlearning:
    """A predictor that remembers nothing."""

    def ended(self, tenant: str, num_choices: int, output_tokens: int) -> None:
        """Nothing follows."""


class Nothing(Unlearning):
    """`none`: each token is charged when it comes."""

    def output_tokens(self, queued: Queued) -> int:  # noqa: ARG002  it is the same for all
        """Always 0."""
        return 0


class Declared(Unlearning):
    """`declared`: all that it asked for, or may come to where it did not ask."""

    def output_tokens(self, queued: Queued) -> int:
        """What it is sized by."""
        return queued.expected_tokens


class Oracle(Unlearning):
    """`oracle`, and `noisy_oracle: x`: the true length times a number drawn between 1 - x and 1 + x.

    The number is a hash of the order of arrival, so that replays agree.
    """

    def __init__(self, error: float) -> None:
        self._error = error

    def output_tokens(self, queued: Queued) -> int:
        """What a replay knows."""
        share = 1.0 + self._error * (2.0 * _uniform(queued.number) - 1.0)
        return round(queued.true_tokens * share)


class MeanLast:
    """`mean_last: n`: the mean of a tenant's last n outputs of a choice; 0 before the first."""

    def __init__(self, num: int) -> None:
        self._num = num
        self._outputs: OrderedDict[str, deque[float]] = OrderedDict()

    def output_tokens(self, queued: Queued) -> int:
        """By what the tenant's requests came to."""
        outputs = self._outputs.get(queued.tenant)
        return round(queued.num_choices * sum(outputs) / len(outputs)) if outputs else 0

    def ended(self, tenant: str, num_choices: int, output_tokens: int) -> None:
        """Remember it instead of the oldest of n."""
        outputs = self._outputs.get(tenant)
        if outputs is None:
            outputs = self._outputs[tenant] = deque(maxlen=self._num)
            if len(self._outputs) > MAX_TENANTS:
                self._outputs.popitem(last=False)
        outputs.append(output_tokens / num_choices)
        self._outputs.move_to_end(tenant)


class MovingAverage:
    """`ema: w`: a mean of a tenant's outputs of a choice in which the newest has weight w; the first counts whole."""

    def __init__(self, weight: float) -> None:
        self._weight = weight
        self._means: OrderedDict[str, float] = OrderedDict()

    def output_tokens(self, queued: Queued) -> int:
        """By what the tenant's requests came to."""
        return round(queued.num_choices * self._means.get(queued.tenant, 0.0))

    def ended(self, tenant: str, num_choices: int, output_tokens: int) -> None:
        """Move the mean towards it."""
        newest = output_tokens / num_choices
        mean = self._means.get(tenant, newest)
        self._means[tenant] = mean + self._weight * (newest - mean)
        self._means.move_to_end(tenant)
        if len(self._means) > MAX_TENANTS:
            self._means.popitem(last=False)


def predictor(kind: str | LengthPredictor) -> Predictor:
    """The predictor of a policy, knowing nothing yet."""
    match kind:
        case LengthPredictor(mean_last=int(num)):
            return MeanLast(num)
        case LengthPredictor(ema=float(weight)):
            return MovingAverage(weight)
        case LengthPredictor(noisy_oracle=float(error)):
            return Oracle(error)
        case "oracle":
            return Oracle(0.0)
        case "declared":
            return Declared()
        case _:
            return Nothing()


def _uniform(number: int) -> float:
    """In [0, 1), by the finalizer of splitmix64."""
    mask = 2**64 - 1
    mixed = (number * 0x9E3779B97F4A7C15) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    return (mixed ^ (mixed >> 31)) / 2**64
