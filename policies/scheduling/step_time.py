"""How long a step takes, as a policy believes.

Owns the estimate and nothing else. The simulator's own model of a step is a different object, so that a policy can be
wrong about its executor in a replay as it can be live.
"""


class StepTime:
    """Mean of all steps, or an exponentially weighted one; 0 before the first step.

    Attributes:
        estimate_s: seconds.
        num_steps: that have ended.
    """

    __slots__ = ("_num_tokens", "_total_s", "_weight", "estimate_s", "num_steps")

    def __init__(self, weight: float | None) -> None:
        self._weight = weight
        self.num_steps = 0
        self._num_tokens = 0
        self._total_s = 0.0
        self.estimate_s = 0.0

    def observe(self, step_time_s: float, num_tokens: int = 1) -> None:
        """Take a finished step of so many tokens into account."""
        self.num_steps += 1
        self._num_tokens += num_tokens
        self._total_s += step_time_s
        if self._weight is None or self.num_steps == 1:
            self.estimate_s = self.mean_s
        else:
            self.estimate_s += self._weight * (step_time_s - self.estimate_s)

    def reweigh(self, weight: float | None) -> None:
        """Follow a new policy; what was seen so far counts on. `weight` None: mean of all steps."""
        self._weight = weight
        if weight is None and self.num_steps:
            self.estimate_s = self.mean_s

    @property
    def mean_s(self) -> float:
        """Of all steps since the start."""
        return self._total_s / self.num_steps if self.num_steps else 0.0

    @property
    def token_s(self) -> float:
        """Of all tokens: no step with more takes longer for each."""
        return self._total_s / self._num_tokens if self._num_tokens else 0.0
