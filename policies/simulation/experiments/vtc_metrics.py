"""What VTC's evaluation measures of a run: service differences, throughput, waits (fairness specification, 12.2).

Owns these definitions, which serve the comparison with published figures and nothing else. Knows no policy.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from policies.simulation.outcome import Served

Figures = dict[str, Any]
Floats = NDArray[np.float64]
CostOf = Callable[[Floats, Floats], Floats]
"""Cost of requests of (prompt, output) tokens."""

WINDOW_S, WARM_UP_S, HORIZON_S, NUM_STEPS = 60.0, 30.0, 600.0, 20
EARLIEST_S, SHORTEST_S = 1.0, 1e-5
"""What finished before, or was shorter, is left out."""


def weighted_tokens(prompt_tokens: Floats, output_tokens: Floats) -> Floats:
    """The linear cost: an output token is twice a prompt token."""
    return prompt_tokens + 2.0 * output_tokens


def profiled(prompt_tokens: Floats, output_tokens: Floats) -> Floats:
    """The cost that was fitted to the A10G: milliseconds of a request in a full batch."""
    h = 0.21001891 * prompt_tokens + 0.10075395 * output_tokens + 1.14601454
    return h + 0.0039868 * prompt_tokens * output_tokens + 0.00324733 * output_tokens**2


class Completed(NamedTuple):
    """Columns over the requests that were served to their end."""

    names: list[str]
    tenants: NDArray[np.int64]
    """Index into `names`."""
    arrived_s: Floats
    first_s: Floats
    """Time of the first token."""
    ended_s: Floats
    prompt_tokens: Floats
    output_tokens: Floats


def completed(served: list[Served]) -> Completed:
    """Columns of a run; tenants by their name."""
    names = sorted({one.asked.tenant for one in served})
    numbers = {name: number for number, name in enumerate(names)}
    rows = [
        (
            numbers[one.asked.tenant],
            one.asked.arrived_at_s,
            one.first_token_at_s,
            one.finished_at_s,
            one.asked.prompt_tokens,
            one.output_tokens,
        )
        for one in served
        if one.finished_at_s is not None and one.first_token_at_s is not None
    ]
    columns = np.array(rows, np.float64).reshape(-1, 6).T
    return Completed(names, columns[0].astype(np.int64), *columns[1:])


def service(done: Completed, cost: Floats, from_s: float, until_s: float) -> Floats:
    """Cost served to each tenant in a window; a request's is spread evenly from its first token to its end."""
    shared = np.minimum(done.ended_s, until_s) - np.maximum(done.first_s, from_s)
    lasted = done.ended_s - done.first_s
    parts = cost * np.clip(shared, 0.0, None) / np.where(lasted > 0.0, lasted, 1.0)
    return _by_tenant(done, parts)


def figures(served: list[Served], cost_of: CostOf) -> Figures:
    """Everything that is compared of a run, service counted by that cost.

    The difference of a window is the sum over tenants of how far each is behind the one that got most, or off what it
    asked for where that is nearer.
    """
    everything = completed(served)
    counts = (everything.ended_s >= EARLIEST_S) & (everything.ended_s - everything.first_s >= SHORTEST_S)
    names, tenants, *columns = everything
    done = Completed(names, tenants[counts], *(column[counts] for column in columns))
    cost = cost_of(done.prompt_tokens, done.output_tokens)
    asked = weighted_tokens(done.prompt_tokens, done.output_tokens)
    samples = list(_samples(done, cost, asked))
    differences = np.array([sample["difference"] for sample in samples])
    tokens = float((everything.prompt_tokens + everything.output_tokens).sum())
    waits = everything.first_s - everything.arrived_s
    return {
        "max_diff": float(differences.max()),
        "avg_diff": float(differences.mean()),
        "diff_var": float(differences.var()),
        "tokens_per_s": tokens / float(everything.ended_s.max()) if len(everything.ended_s) else 0.0,
        "rejected": sum(bool(one.refusal) for one in served),
        "mean_ttft_s": float(waits.mean()) if len(waits) else None,
        "tenants": [
            {"tenant": name, **_wait(waits[everything.tenants == number])}
            for number, name in enumerate(everything.names)
        ],
        "max_accumulated_gap": {
            "warm_up_30_s": _accumulated(done, cost, WARM_UP_S),
            "warm_up_0_s": _accumulated(done, cost, 0.0),
        },
        "service_per_s_300_to_600_s": (service(done, cost, 300.0, 600.0) / 300.0).tolist(),
        "samples": samples,
    }


def _by_tenant(done: Completed, amounts: Floats) -> Floats:
    return np.bincount(done.tenants, amounts, len(done.names)).astype(np.float64)


def _samples(done: Completed, cost: Floats, asked: Floats) -> Iterator[Figures]:
    for step in range(1, NUM_STEPS):
        from_s = step * (HORIZON_S - WARM_UP_S) / NUM_STEPS
        until_s = from_s + WINDOW_S
        got = service(done, cost, from_s, until_s) / WINDOW_S
        came = (done.arrived_s >= from_s) & (done.arrived_s <= until_s)
        wanted = _by_tenant(done, asked * came) / WINDOW_S
        behind = np.minimum(got.max(initial=0.0) - got, np.abs(wanted - got))
        yield {"from_s": from_s, "difference": float(behind.sum()), "service_per_s": got.round(2).tolist()}


def _accumulated(done: Completed, cost: Floats, warm_up_s: float) -> float:
    """The largest difference between two tenants' services since the warm-up."""
    gaps = []
    for step in range(1, NUM_STEPS):
        until_s = warm_up_s + step * (HORIZON_S - warm_up_s) / NUM_STEPS
        got = service(done, cost, warm_up_s, until_s)
        gaps.append(float(got.max() - got.min()) if len(got) else 0.0)
    return max(gaps)


def _wait(waits: Floats) -> Figures:
    """Seconds to the first token."""
    if not len(waits):
        return {"completed": 0, "mean_ttft_s": None, "max_ttft_s": None}
    return {"completed": len(waits), "mean_ttft_s": float(waits.mean()), "max_ttft_s": float(waits.max())}
