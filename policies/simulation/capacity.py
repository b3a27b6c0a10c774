"""The largest rate at which a workload is still served as asked: bisection over requests per second.

Owns the search. Knows a rate and a verdict; does not know what was run, or why the verdict is what it is.
"""

from collections.abc import Callable
from typing import NamedTuple

LOWEST_QPS = 1e-3
HIGHEST_QPS = 1e6


class Probe(NamedTuple):
    """One run of the search."""

    qps: float
    met: bool


class Capacity(NamedTuple):
    """What a search found."""

    qps: float | None
    """The largest rate that was seen to pass; None: not even 0.001 requests a second does."""
    bounded: bool
    """Whether a rate failed above it; without one the figure is only what was tried."""
    probes: list[Probe]
    """In the order they were run."""


def find_capacity(
    probe: Callable[[float], bool], *, low_qps: float, high_qps: float, precision: float = 0.01
) -> Capacity:
    """Bisect between a rate that passes and one that fails until they differ by at most `precision` of the lower.

    `low_qps` and `high_qps` are a guess: both are tried, and while the lower one fails or the upper one passes the
    bracket moves by factors of two. The verdicts are taken to be monotone in the rate, as they are when every rate has
    the same arrivals, scaled; where they are not, the result is still a rate that passed below one that failed.

    Raises:
        ValueError: the bracket is empty or not above 0, or the precision is not above 0.
    """
    if not 0.0 < low_qps < high_qps or precision <= 0.0:
        raise ValueError(f"nothing to search between {low_qps} and {high_qps} requests/s to {precision}")
    probes: list[Probe] = []

    def passes(qps: float) -> bool:
        probes.append(Probe(qps, probe(qps)))
        return probes[-1].met

    low, high = low_qps, high_qps
    while not passes(low):
        low, high = low / 2, low
        if low < LOWEST_QPS:
            return Capacity(None, bounded=True, probes=probes)
    if high == high_qps:
        while passes(high):
            low, high = high, high * 2
            if low > HIGHEST_QPS:
                return Capacity(low, bounded=False, probes=probes)
    while high - low > precision * low:
        middle = (low + high) / 2
        low, high = (middle, high) if passes(middle) else (low, middle)
    return Capacity(low, bounded=True, probes=probes)
