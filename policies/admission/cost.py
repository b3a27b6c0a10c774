"""What a request costs its tenant (Sheng et al., OSDI 2024, section 3; the kinds of `fairness.cost`).

Knows token counts and prices; does not know tenants, weights or time. A cost never falls when a prompt or an output
grows; loading refuses those that do.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Protocol

from msgspec import Struct

from policies.document.fairness import KvTokenTime, Quadratic, Table, Tokens, WeightedTokens


class Cost(Protocol):
    """A cost `h(prompt, output)` in cost units, charged in parts."""

    @property
    def per_token(self) -> float | None:
        """What every output token adds, if it is always the same."""

    def whole(self, prompt_tokens: int, output_tokens: int) -> float:
        """Cost of a request that produced (or may produce) `output_tokens` over all its choices."""

    def token(self, prompt_tokens: int, nth: int) -> float:
        """What the n-th output token adds, counted from 1."""

    def saved(self, prompt_tokens: int, cached_tokens: int) -> float:
        """What is given back when so much of a prompt was found in the prefix cache."""

    def dearest(self, window_tokens: int) -> float:
        """The largest cost of a request per token of its size, over all sizes up to `window_tokens`."""


class Prices(Struct, frozen=True):
    """Linear prices: `prompt` at admission, `output` for every output token, in cost units per token."""

    prompt: float
    output: float
    cached_prompt: float = 0.0
    """Share of its price that a cached prompt token keeps."""

    @property
    def per_token(self) -> float | None:
        """What every output token adds."""
        return self.output

    def whole(self, prompt_tokens: int, output_tokens: int) -> float:
        """Cost of a request that produced (or may produce) `output_tokens` over all its choices."""
        return self.prompt * prompt_tokens + self.output * output_tokens

    def token(self, prompt_tokens: int, nth: int) -> float:  # noqa: ARG002  every token is the same
        """What the n-th output token adds."""
        return self.output

    def saved(self, prompt_tokens: int, cached_tokens: int) -> float:  # noqa: ARG002
        """What is given back when so much of a prompt was found in the prefix cache."""
        return self.prompt * cached_tokens * (1.0 - self.cached_prompt)

    def dearest(self, window_tokens: int) -> float:  # noqa: ARG002
        """The dearer of the two prices."""
        return max(self.prompt, self.output)


class Polynomial(Struct, frozen=True):
    """`a p + b q + c p q + d q^2 + e` of p prompt and q output tokens."""

    a: float
    b: float
    c: float
    d: float
    e: float
    saves: bool = True
    """Whether a cached prompt token is cheaper; it is not where what is held is paid for."""

    @property
    def per_token(self) -> float | None:
        """Later tokens may cost more."""
        return None

    def whole(self, prompt_tokens: float, output_tokens: float) -> float:
        """Cost of a request that produced (or may produce) `output_tokens` over all its choices."""
        p, q = prompt_tokens, output_tokens
        return self.a * p + self.b * q + self.c * p * q + self.d * q * q + self.e

    def token(self, prompt_tokens: int, nth: int) -> float:
        """What the n-th output token adds."""
        return self.b + self.c * prompt_tokens + self.d * (2 * nth - 1)

    def saved(self, prompt_tokens: int, cached_tokens: int) -> float:  # noqa: ARG002
        """What is given back when so much of a prompt was found in the prefix cache."""
        return self.a * cached_tokens if self.saves else 0.0

    def dearest(self, window_tokens: int) -> float:
        """The largest cost per token."""
        return _dearest(self.whole, (), (), window_tokens)


class Profile(Struct, frozen=True):
    """A measured table, linear between its points."""

    prompts: tuple[int, ...]
    outputs: tuple[int, ...]
    rows: tuple[tuple[float, ...], ...]

    @property
    def per_token(self) -> float | None:
        """It depends on where in the table it is."""
        return None

    def whole(self, prompt_tokens: float, output_tokens: float) -> float:
        """Cost of a request that produced (or may produce) `output_tokens` over all its choices."""
        row, share = _place(self.prompts, max(prompt_tokens, self.prompts[0]))
        low, high = self._along(row, output_tokens), self._along(row + 1, output_tokens)
        return low + share * (high - low)

    def token(self, prompt_tokens: int, nth: int) -> float:
        """What the n-th output token adds."""
        return self.whole(prompt_tokens, nth) - self.whole(prompt_tokens, nth - 1)

    def saved(self, prompt_tokens: int, cached_tokens: int) -> float:
        """What is given back when so much of a prompt was found in the prefix cache."""
        return self.whole(prompt_tokens, 0) - self.whole(prompt_tokens - cached_tokens, 0)

    def dearest(self, window_tokens: int) -> float:
        """The largest cost per token."""
        return _dearest(self.whole, self.prompts, self.outputs, window_tokens)

    def _along(self, row: int, output_tokens: float) -> float:
        column, share = _place(self.outputs, output_tokens)
        low, high = self.rows[row][column], self.rows[row][column + 1]
        return low + share * (high - low)


class Bound:
    """`U`: how far the counters of two backlogged tenants with weight 1 may be apart under VTC.

    The sizes in flight sum to at most M tokens. With linear prices U = w_q M + max(0, w_p - w_q) L, where L is the
    longest prompt: the paper's where an output token costs at least a prompt token. With any other cost it is M times
    the largest cost per token of a request that fits. Counters may still be apart by what earlier prices allowed, so
    every cost that ever was in force counts.

    A refund lowers the counter of whoever waits while others went on from the higher one: by its prompts in flight at
    most, which with theirs sum to M. So where prompts were given back (prefix hits, failures), L is M.
    """

    def __init__(self) -> None:
        self._costs: list[Cost] = []
        self._linear = Prices(0.0, 0.0)
        self._longest_prompt_tokens = 0
        self._known: tuple[int, float] = (0, 0.0)
        self._refunds = False
        self._least = 0.0

    def remember(self, value: float) -> None:
        """It was so much before, and counters may still be that far apart."""
        self._least = value

    def released(self, prompt_tokens: int) -> None:
        """A request with this prompt is in flight."""
        if prompt_tokens > self._longest_prompt_tokens:
            self._longest_prompt_tokens = prompt_tokens
            self._known = (0, 0.0)

    def refunds_prompts(self) -> None:
        """Something of a prompt was given back."""
        self._refunds = True
        self._known = (0, 0.0)

    def allow(self, cost: Cost) -> None:
        """Requests are charged by this from now on."""
        if cost in self._costs:
            return
        self._costs.append(cost)
        if isinstance(cost, Prices):
            self._linear = Prices(max(cost.prompt, self._linear.prompt), max(cost.output, self._linear.output))
        self._known = (0, 0.0)

    def value(self, window_tokens: int) -> float:
        """U, in cost units, where at most so many tokens were in flight."""
        if self._known[0] != window_tokens:
            self._known = (window_tokens, self._value(window_tokens))
        return max(self._known[1], self._least)

    def _value(self, window_tokens: int) -> float:
        if not window_tokens:
            return 0.0
        if all(isinstance(cost, Prices) for cost in self._costs):
            prices = self._linear
            longest_tokens = window_tokens if self._refunds else self._longest_prompt_tokens
            return prices.output * window_tokens + max(0.0, prices.prompt - prices.output) * longest_tokens
        return window_tokens * max(cost.dearest(window_tokens) for cost in self._costs)


def cost_of(cost: WeightedTokens | Tokens | Quadratic | Table | KvTokenTime) -> Cost:
    """The cost model of a policy."""
    match cost:
        case WeightedTokens():
            return Prices(cost.prompt, cost.output, cost.cached_prompt)
        case Tokens():
            return Prices(1.0, 1.0)
        case Quadratic():
            return Polynomial(cost.a, cost.b, cost.c, cost.d, cost.e)
        case Table():
            return Profile(cost.points.prompt_tokens, cost.points.output_tokens, cost.points.costs)
        case KvTokenTime():
            # x for the step of the prompt, then x + k for the k-th token: x + q x + q (q + 1) / 2 in all.
            return Polynomial(1.0, 0.5, 1.0, 0.5, 0.0, saves=False)


def _place(ascending: tuple[int, ...], value: float) -> tuple[int, float]:
    """The interval that a value is in, and how far into it; beyond the last point its last interval goes on."""
    index = min(max(bisect_right(ascending, value) - 1, 0), len(ascending) - 2)
    return index, (value - ascending[index]) / (ascending[index + 1] - ascending[index])


def _dearest(
    whole: Callable[[float, float], float], prompts: Iterable[int], outputs: Iterable[int], most: int
) -> float:
    """Largest `whole(p, q) / (p + q)` with 1 <= p and p + q <= most.

    Between the given points a cost is linear in p and convex in q, so that along either the ratio is largest at an
    end: at a point of the grid, or where p + q = most. On that line the cost is a parabola between points.
    """
    rows = sorted({1, most, *(p for p in prompts if 1 < p < most)})
    columns = sorted({0, most - 1, *(q for q in outputs if 0 < q < most - 1)})
    ratios = [whole(p, q) / (p + q) for p in rows for q in columns if p + q <= most]
    edge = sorted({*rows, *(most - q for q in columns)})
    ratios += [whole(p, most - p) / most for p in edge]
    for left, right in pairwise(edge):
        middle, half = (left + right) / 2, (right - left) / 2
        low, centre, high = (whole(p, most - p) for p in (left, middle, right))
        bend, slope = low + high - 2 * centre, (high - low) / 2
        if bend < 0 and abs(slope) < -bend:
            top = middle - half * slope / bend
            ratios.append(whole(top, most - top) / most)
    return max(ratios)
