"""What a request costs its tenant (Sheng et al., OSDI 2024, section 3).

Knows token counts and prices; does not know tenants, weights or time.
"""

from msgspec import Struct

from policies.document.schema import WeightedTokens


class Prices(Struct, frozen=True):
    """Linear prices: `prompt` at admission, `output` for every output token, in cost units per token."""

    prompt: float
    output: float

    def whole(self, prompt_tokens: int, output_tokens: int) -> float:
        """Cost of a request that produced (or may produce) `output_tokens` over all its choices."""
        return self.prompt * prompt_tokens + self.output * output_tokens

    def bound(self, window_tokens: int, longest_prompt_tokens: int) -> float:
        """`U`: how far the counters of two backlogged tenants may be apart.

        The sizes in flight sum to at most `window_tokens`. Where an output token costs at least a prompt token this is
        the paper's bound; the second term corrects it for dearer prompts.
        """
        return self.output * window_tokens + max(0.0, self.prompt - self.output) * longest_prompt_tokens

    def at_least(self, other: "Prices") -> "Prices":
        """The dearer of the two, price by price: what a bound must assume once prices have changed."""
        return Prices(max(self.prompt, other.prompt), max(self.output, other.output))


def prices(cost: WeightedTokens) -> Prices:
    """Prices of the policy's cost model."""
    return Prices(cost.prompt, cost.output)
