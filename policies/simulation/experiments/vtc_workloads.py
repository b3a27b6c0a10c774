"""The workloads of VTC's evaluation: synthetic ones by the authors' recipe, and one with the statistics of their trace.

Owns rates, lengths and the order in which random numbers are drawn (fairness specification, 12.1). Knows no policy.
Tenants are named by their number; requests come in order of arrival, those of one instant in order of the tenants.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from policies.simulation.sharegpt import lengths_at
from policies.simulation.trace_request import TraceRequest

Requests = list[TraceRequest]
Generator = np.random.RandomState
TIER = "free"
HALF_PERIOD_S = 60.0
"""An ON/OFF tenant asks in every other one of these."""
USUAL = (256, 256)


class Tenant(NamedTuple):
    """One that asks at even intervals."""

    per_s: float
    on_off: bool = False
    weight: float = 1.0


def uniform(
    generator: Generator,
    tenants: tuple[Tenant, ...],
    duration_s: float,
    *,
    lengths: tuple[int, int] = USUAL,
    from_s: float = 0.0,
) -> Requests:
    """Each tenant at even intervals, behind a random first one."""
    requests = []
    for name, tenant in enumerate(tenants):
        first_s = generator.rand() / tenant.per_s
        for number in range(1, int(tenant.per_s * duration_s) + 1):
            at_s = first_s + number / tenant.per_s
            if not (tenant.on_off and _is_off(at_s)):
                requests.append(TraceRequest(from_s + at_s, str(name), TIER, *lengths, weight=tenant.weight))
    return _by_arrival(requests)


def poisson(
    generator: Generator,
    rates: tuple[float, float],
    duration_s: float,
    *,
    lengths: tuple[tuple[int, int], tuple[int, int]] | None = None,
    on_off: bool = False,
) -> Requests:
    """Two tenants at random intervals; without `lengths` prompts and outputs are drawn from 16 to 511 tokens."""
    total = sum(rates)
    count = int(total * duration_s)
    names = (generator.rand(count) > rates[0] / total).astype(int).tolist()
    if lengths is None:
        prompts, outputs = (generator.randint(16, 512, count).tolist() for _ in range(2))
        sizes = list(zip(prompts, outputs, strict=True))
    else:
        sizes = [lengths[name] for name in names]
    arrivals = np.cumsum(generator.gamma(1.0, 1.0 / total, count)).tolist()
    return [
        TraceRequest(at_s, str(name), TIER, *size)
        for at_s, name, size in zip(arrivals, names, sizes, strict=True)
        if not (on_off and name == 0 and _is_off(at_s))
    ]


def increasing() -> Requests:
    """One tenant every 2 s, the other ever more often."""
    steady = [TraceRequest(2.0 * number, "0", TIER, *USUAL) for number in range(1, 301)]
    growing, at_s = [], 0.0
    for _ in range(660):
        at_s += 1.0 / (0.2 + 1.8 * at_s / 600.0)
        growing.append(TraceRequest(at_s, "1", TIER, *USUAL))
    return _by_arrival(steady + growing)


def shifting(generator: Generator) -> Requests:
    """Three phases of 300 s: one below its share and ON/OFF, both at their share, both above it."""
    phases = ((Tenant(0.5, on_off=True), Tenant(2.0)), (Tenant(1.0), Tenant(1.0)), (Tenant(0.5), Tenant(1.5)))
    requests = []
    for number, tenants in enumerate(phases):
        requests += uniform(generator, tenants, 300.0, from_s=300.0 * number)
    return _by_arrival(requests)


OVERLOAD = (Tenant(1.5), Tenant(3.0))
EIGHT = (*(Tenant(0.4) for _ in range(3)), *(Tenant(0.6) for _ in range(5)))
WEIGHTED = tuple(Tenant(0.4 * share, weight=share) for share in (1.0, 2.0, 3.0, 4.0))
SHORT_LONG = (8.0, 1.5)

WORKLOADS: dict[str, Callable[[Generator], Requests]] = {
    "overload": lambda generator: uniform(generator, OVERLOAD, 360.0),
    "overload_600s": lambda generator: uniform(generator, OVERLOAD, 600.0),
    "proportional": lambda generator: uniform(generator, (Tenant(0.25), Tenant(0.5), Tenant(1.5)), 600.0),
    "on_off_less": lambda generator: uniform(generator, (Tenant(0.5, on_off=True), Tenant(2.0)), 600.0),
    "on_off_overload": lambda generator: uniform(generator, (Tenant(2.0, on_off=True), Tenant(3.0)), 600.0),
    "poisson_short_long": lambda generator: poisson(generator, SHORT_LONG, 600.0, lengths=((64, 64), USUAL)),
    "poisson_short_long_2": lambda generator: poisson(generator, SHORT_LONG, 600.0, lengths=((512, 32), (32, 512))),
    "increase": lambda _: increasing(),
    "dist_shift": shifting,
    "poisson_on_off": lambda generator: poisson(generator, (0.5, 2.0), 600.0, on_off=True),
    "weighted": lambda generator: uniform(generator, WEIGHTED, 360.0),
    "eight_tenants": lambda generator: uniform(generator, EIGHT, 360.0),
}
"""By name; each begins with a fresh generator of the seed. They are Figures 3 to 10, 16 and 19 of the paper."""


def workload(name: str, seed: int) -> Requests:
    """A synthetic workload of `WORKLOADS`."""
    return WORKLOADS[name](Generator(seed))


# --- a stand-in for the trace ------------------------------------------------------------------------------------

BURSTS = (
    *((0, 44, 0, 600), (1, 296, 0, 600), (2, 161, 0, 240), (2, 38, 240, 600), (3, 56, 0, 600), (4, 69, 0, 240)),
    *((4, 51, 240, 600), (5, 12, 0, 180), (6, 36, 0, 600), (7, 11, 0, 120), (8, 19, 0, 180), (9, 67, 0, 600)),
    *((10, 3, 0, 60), (11, 7, 0, 120), (12, 26, 0, 600), (13, 40, 0, 600), (14, 2, 0, 120), (15, 22, 0, 300)),
    *((16, 23, 0, 600), (17, 43, 60, 600), (18, 25, 180, 600), (19, 262, 180, 600), (20, 46, 180, 600)),
    *((21, 66, 240, 600), (22, 19, 360, 600), (23, 31, 420, 600), (24, 22, 420, 600), (25, 2, 540, 600)),
    (26, 1, 540, 600),
)
"""(tenant, requests, between these seconds): how much each of the 27 asks for, and when it is there."""
PROMPT_QUANTILES = (
    *((0.0, 2), (0.05, 5), (0.25, 13), (0.50, 40), (0.75, 161), (0.90, 432), (0.95, 653), (0.99, 902)),
    (1.0, 1021),
)
OUTPUT_QUANTILES = (
    *((0.0, 2), (0.05, 10), (0.10, 18), (0.25, 62), (0.50, 211), (0.75, 458), (0.90, 513), (0.95, 513)),
    *((0.99, 785), (1.0, 977)),
)
"""As `lengths_at` takes them."""


def chat_of_27(seed: int) -> Requests:
    """Requests with the statistics of the published trace: tenants, their presence, and lengths."""
    return _by_arrival(list(_bursts(np.random.default_rng(seed))))


def _bursts(generator: np.random.Generator) -> Iterator[TraceRequest]:
    for tenant, count, from_s, until_s in BURSTS:
        arrivals = np.sort(generator.uniform(from_s, until_s, count)).tolist()
        prompts, outputs = (
            lengths_at(quantiles, generator.random(count)).tolist()
            for quantiles in (PROMPT_QUANTILES, OUTPUT_QUANTILES)
        )
        for at_s, prompt_tokens, output_tokens in zip(arrivals, prompts, outputs, strict=True):
            yield TraceRequest(at_s, f"client{tenant:02}", TIER, prompt_tokens, output_tokens)


def _is_off(at_s: float) -> bool:
    return int(at_s // HALF_PERIOD_S) % 2 == 1


def _by_arrival(requests: Requests) -> Requests:
    return sorted(requests, key=lambda request: request.arrived_at_s)
