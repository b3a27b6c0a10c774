"""When the requests of a tenant come.

Owns the arrival processes. Every one of them has the mean rate it was asked for; they differ in how far a busy minute
is from it. Randomness comes from the generator alone.
"""

from collections.abc import Callable
from math import pi

import numpy as np
from numpy.typing import NDArray

from policies.simulation.parameters import Parameters

Times = NDArray[np.float64]
Arrivals = Callable[[float, float, np.random.Generator], Times]
"""(requests per second, seconds, generator) -> times of arrival, ascending."""


def poisson(rate: float, duration_s: float, generator: np.random.Generator) -> Times:
    """Independent arrivals."""
    count = int(generator.poisson(rate * duration_s))
    return np.sort(generator.random(count) * duration_s)


def gamma(parameters: Parameters) -> Arrivals:
    """Gaps of a gamma distribution, in bursts for a coefficient of variation above 1 (`cv`; Poisson is 1)."""
    cv = parameters.number("cv", 3.0)

    def times(rate: float, duration_s: float, generator: np.random.Generator) -> Times:
        """Gaps are drawn until they are past the end."""
        arrived: list[float] = []
        now = 0.0
        while True:
            for gap in generator.gamma(1 / cv**2, cv**2 / rate, 1024).tolist():
                now += gap
                if now >= duration_s:
                    return np.array(arrived)
                arrived.append(now)

    return times


def diurnal(parameters: Parameters) -> Arrivals:
    """A sine wave around the mean rate, from its lowest point on: `period_s` long, `depth` times the mean high."""
    period_s = parameters.number("period_s", 300.0)
    depth = parameters.number("depth", 0.8, most=1.0)

    def times(rate: float, duration_s: float, generator: np.random.Generator) -> Times:
        """Arrivals at the highest rate, thinned."""
        candidates = poisson(rate * (1 + depth), duration_s, generator)
        wave = 1 - depth * np.cos(2 * pi * candidates / period_s)
        kept: Times = candidates[generator.random(len(candidates)) * (1 + depth) < wave]
        return kept

    return times


def on_off(parameters: Parameters) -> Arrivals:
    """Poisson for the first `on_share` of every `period_s`, then nothing."""
    period_s = parameters.number("period_s", 120.0)
    on_share = parameters.number("on_share", 0.5, most=1.0)

    def times(rate: float, duration_s: float, generator: np.random.Generator) -> Times:
        """Arrivals of a busy time without its pauses, which are put in afterwards."""
        periods, rest_s = divmod(duration_s, period_s)
        busy_s = on_share * period_s
        busy = poisson(rate / on_share, periods * busy_s + min(rest_s, busy_s), generator)
        spread: Times = busy // busy_s * period_s + busy % busy_s
        return spread

    return times


ARRIVALS: dict[str, Callable[[Parameters], Arrivals]] = {
    "poisson": lambda _: poisson,
    "gamma": gamma,
    "diurnal": diurnal,
    "on_off": on_off,
}
"""By name; each takes its own parameters."""
