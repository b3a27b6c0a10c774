"""How fast what is released gets its first tokens, and how much of that the shorter prompts take.

Owns both measures. Knows costs, lengths and seconds; does not know requests, classes or promises.
"""

from math import exp

SAMPLE_S = 1.0
"""Seconds with something to start, together, that make one sample of the speed."""
NEWEST_SHARE = 0.5
"""Of a sample that is slower than the speed; a faster one counts whole, because it shows what can be done."""
FLOW_S = 3.0
"""What started so long ago counts by 1/e of what starts now."""
GOES_ON = 0.5
"""The part of the flow of shorter prompts that is taken to go on until one's turn. With all of it, at twice what can be
served one refusal in fifteen is false; with nothing, the longest of those let in are never started while a load lasts,
fill half of the window, and everybody waits before it when the load has ended."""
NUM_LENGTHS = 256
"""Lengths of prompts told apart: eight to a power of two."""


class StartingSpeed:
    """Measured by first tokens.

    Attributes:
        per_s: cost that gets its first token per second while there is something to start; 0: not measured yet.
    """

    def __init__(self) -> None:
        self.per_s = 0.0
        self._busy_s = 0.0
        self._cost = 0.0
        self._flow = [0.0] * NUM_LENGTHS
        """Cost that gets its first token per second, by its prompt's length."""
        self._newest = [0.0] * NUM_LENGTHS
        """Cost since `_flowed_at_s`, by its prompt's length."""
        self._flowed_at_s = 0.0

    def busy(self, seconds: float) -> None:
        """There was something to start for so long."""
        self._busy_s += seconds

    def started(self, length: int, cost: float) -> None:
        """A request has its first token."""
        self._cost += cost
        self._newest[length] += cost

    def sample(self, now: float) -> None:
        """Measure anew, if it is time to."""
        if self._busy_s >= SAMPLE_S:
            sample = self._cost / self._busy_s
            self.per_s += (NEWEST_SHARE if sample < self.per_s else 1.0) * (sample - self.per_s)
            self._busy_s = self._cost = 0.0
        elapsed_s = now - self._flowed_at_s
        if elapsed_s >= SAMPLE_S:
            newest_share = 1.0 - exp(-elapsed_s / FLOW_S)
            rows = zip(self._flow, self._newest, strict=True)
            self._flow = [flow + newest_share * (newest / elapsed_s - flow) for flow, newest in rows]
            self._newest = [0.0] * NUM_LENGTHS
            self._flowed_at_s = now

    def left_per_s(self, length: int) -> float:
        """What the speed leaves to prompts of a length where shorter ones overtake them.

        Whoever has work U before it when it comes waits U / (1 - rho) where those that come later and go first take the
        share rho of the speed (Cobham, Operations Research 1954).
        """
        return self.per_s - GOES_ON * min(sum(self._flow[:length]), self.per_s)


def length_of(prompt_tokens: int) -> int:
    """A length's place among those told apart: its bits, and the three after the highest."""
    shift = max(0, prompt_tokens.bit_length() - 4)
    return min(8 * shift + (prompt_tokens >> shift), NUM_LENGTHS - 1)
