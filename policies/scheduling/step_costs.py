"""What a step takes by what is in it, learned from the steps that ended.

Owns the fit and nothing else; knows neither policies nor sequences. It is local on purpose: old steps fade, so a line
is enough where a device's true curve is none, as long as the next step is like the last ones.
"""

from typing import NamedTuple

MEMORY = 0.99
"""Weight of a step against that of the next one: a hundred steps count."""
STIFFNESS = 0.05
"""Spread, as a share of the mean, below which what was seen says little about a slope."""


class StepShape(NamedTuple):
    """What a step holds, as far as its duration goes."""

    num_tokens: int
    context_tokens: int
    """Tokens in KV that its decodes read, summed."""
    has_prompts: bool


class StepCost:
    """Seconds = `fixed_s` + `token_s` x tokens + `context_s` x context tokens: weighted least squares, with forgetting.

    Where tokens hardly vary their price is taken to be the whole time over all tokens, so a longer step is not believed
    to be cheaper before one was seen.

    Attributes:
        most_tokens: of any step seen; 0 before the first.
        fixed_s, token_s, context_s: the line; what is negative by the data is 0.
    """

    __slots__ = (
        "_c",
        "_cc",
        "_ct",
        "_n",
        "_nc",
        "_nn",
        "_nt",
        "_t",
        "_w",
        "context_s",
        "fixed_s",
        "most_tokens",
        "token_s",
    )

    def __init__(self) -> None:
        self.most_tokens = 0
        self.fixed_s = self.token_s = self.context_s = 0.0
        self._w = self._n = self._c = self._t = 0.0
        self._nn = self._nc = self._cc = self._nt = self._ct = 0.0

    def observe(self, num_tokens: int, context_tokens: int, seconds: float) -> None:
        """Take a finished step into account."""
        n, c, t = float(num_tokens), float(context_tokens), seconds
        self.most_tokens = max(self.most_tokens, num_tokens)
        self._w = MEMORY * self._w + 1.0
        self._n = MEMORY * self._n + n
        self._c = MEMORY * self._c + c
        self._t = MEMORY * self._t + t
        self._nn = MEMORY * self._nn + n * n
        self._nc = MEMORY * self._nc + n * c
        self._cc = MEMORY * self._cc + c * c
        self._nt = MEMORY * self._nt + n * t
        self._ct = MEMORY * self._ct + c * t
        self._fit()

    def seconds(self, num_tokens: int, context_tokens: int) -> float:
        """What a step is expected to take."""
        return self.fixed_s + self.token_s * num_tokens + self.context_s * context_tokens

    def tokens_within(self, seconds: float, context_tokens: int) -> float:
        """How many tokens a step may hold to take no longer; negative where the rest takes longer already."""
        left_s = seconds - self.fixed_s - self.context_s * context_tokens
        return left_s / self.token_s if self.token_s else float("inf") * (1 if left_s >= 0 else -1)

    def _fit(self) -> None:
        w = self._w
        n, c, t = self._n / w, self._c / w, self._t / w
        prior = t / n
        # Covariances, with a weak belief in the prior that what was seen outweighs as soon as it spreads.
        nn = self._nn / w - n * n + (STIFFNESS * n) ** 2
        cc = self._cc / w - c * c + (STIFFNESS * c) ** 2
        nc = self._nc / w - n * c
        nt = self._nt / w - n * t + (STIFFNESS * n) ** 2 * prior
        ct = self._ct / w - c * t
        determinant = nn * cc - nc * nc
        self.token_s = max(0.0, nt / nn)
        self.context_s = 0.0
        if determinant > 0.0:
            token_s, context_s = (nt * cc - ct * nc) / determinant, (ct * nn - nt * nc) / determinant
            if context_s > 0.0 and token_s >= 0.0:
                self.token_s, self.context_s = token_s, context_s
            elif token_s < 0.0:
                self.token_s, self.context_s = 0.0, max(0.0, ct / cc)
        self.fixed_s = t - self.token_s * n - self.context_s * c


class StepCosts:
    """Two fits, because a step without prompts reads the weights for a handful of tokens and follows another line.

    Attributes:
        last_decodes_s: of the last step without prompts; steps of that kind follow one another and differ little.
    """

    def __init__(self) -> None:
        self.with_prompts = StepCost()
        self.decodes_only = StepCost()
        self.last_decodes_s = 0.0

    def observe(self, shape: StepShape | None, seconds: float) -> None:
        """Take a finished step into account; None: one of decodes, of which no more than its time is learned."""
        if shape is None or not shape.has_prompts:
            self.last_decodes_s = seconds
        if shape is not None:
            fit = self.with_prompts if shape.has_prompts else self.decodes_only
            fit.observe(shape.num_tokens, shape.context_tokens, seconds)

    def expected_s(self, shape: StepShape | None) -> float | None:
        """What a step is expected to take; None: no step of its kind has ended yet."""
        if shape is not None and shape.has_prompts:
            fit = self.with_prompts
            return fit.seconds(shape.num_tokens, shape.context_tokens) if fit.most_tokens else None
        return self.last_decodes_s or None
