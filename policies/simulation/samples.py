"""What a run is judged by, as columns: one row a request, one a gap between tokens.

Owns the definitions of the metrics (scheduling specification, 1.2) and of a percentile. A time that a request did not
get to is NaN; nothing here decides what that means.
"""

from collections.abc import Sequence
from math import ceil

import numpy as np
from numpy.typing import NDArray

from policies.simulation.outcome import Outcome

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

REQUEST_METRICS = ("ttft_s", "ttft_prefill_s", "first_gap_s", "scheduling_delay_s", "tpot_s", "e2e_s")
"""One sample a request."""
GAP_METRIC = "tbt_s"
"""One sample for every output token after a request's first."""
ROUNDING = 1e-9
"""Share of a sample by which `q * n` may be off a whole number: 0.999 of 1000 samples is the 999th."""


def percentile(ascending: Sequence[float] | Floats, quantile: float) -> float:
    """The smallest sample whose cumulative share is at least `quantile` (nearest rank).

    Raises:
        ValueError: there is no sample.
    """
    if not len(ascending):
        raise ValueError("a percentile of no samples")
    return float(ascending[max(0, ceil(quantile * len(ascending) - ROUNDING) - 1)])


class Samples:
    """The columns of a run.

    Attributes:
        classes: names of the classes, by priority.
        tenants: names, in the order they were first seen.
        slo_class: index into `classes` of each request, -1 where it was never released.
        tenant: index into `tenants` of each request.
        by_request: the metrics with one sample a request, by name, seconds.
        finished, refused, cancelled, preempted: which requests were.
        gap_request: row of the request that each gap belongs to; the gaps ascend.
        gap_s: gaps, ascending.
        late_gaps: by request, how many of its gaps were longer than its class's limit.
        num_gaps: by request.
    """

    def __init__(self, outcome: Outcome) -> None:
        served = outcome.served
        self.outcome = outcome
        self.classes = [name for name, _, _ in outcome.classes]
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.slo_class = np.array([numbers.get(request.slo_class, -1) for request in served], np.int64)
        tenants: dict[str, int] = {}
        self.tenant = np.array([tenants.setdefault(r.asked.tenant, len(tenants)) for r in served], np.int64)
        self.tenants = list(tenants)
        self.arrived_at_s = _column([request.asked.arrived_at_s for request in served])
        self.prompt_tokens = np.array([request.asked.prompt_tokens for request in served], np.int64)
        self.output_tokens = np.array([request.output_tokens for request in served], np.int64)
        self.prefix_hit_tokens = np.array([request.prefix_hit_tokens for request in served], np.int64)
        self.refused = np.array([bool(request.refusal) for request in served], np.bool_)
        self.cancelled = np.array([bool(request.cancellation) for request in served], np.bool_)
        self.preempted = np.array([request.num_starts > 1 for request in served], np.bool_)
        first = _column([request.first_token_at_s for request in served])
        last = _column([request.last_token_at_s for request in served])
        prefilled = _column([request.prefill_done_at_s for request in served])
        finished_at = _column([request.finished_at_s for request in served])
        self.finished: Mask = ~np.isnan(finished_at)
        later_tokens = np.where(self.finished & (self.output_tokens > 1), self.output_tokens - 1.0, np.nan)
        self.by_request: dict[str, Floats] = {
            "ttft_s": first - self.arrived_at_s,
            "ttft_prefill_s": prefilled - self.arrived_at_s,
            "first_gap_s": first - prefilled,
            "scheduling_delay_s": _column([request.first_scheduled_at_s for request in served]) - self.arrived_at_s,
            "tpot_s": (last - first) / later_tokens,
            "e2e_s": finished_at - self.arrived_at_s,
        }
        order = np.argsort(outcome.gaps.seconds, kind="stable")
        self.gap_s: Floats = outcome.gaps.seconds[order]
        self.gap_request = outcome.gaps.requests[order] - 1
        limits = np.array([*(tbt_s for _, _, tbt_s in outcome.classes), np.inf])[self.slo_class]
        self.num_gaps = np.bincount(self.gap_request, minlength=len(served))
        late = self.gap_request[self.gap_s > limits[self.gap_request]]
        self.late_gaps = np.bincount(late, minlength=len(served))

    @property
    def everyone(self) -> Mask:
        """All requests."""
        return np.ones(len(self.finished), np.bool_)

    @property
    def good(self) -> Mask:
        """Requests that count for goodput: finished, the first token in time, and 99 % of the gaps (all of them, where
        there are fewer than 100) within the limit.
        """
        limits = np.array([*(ttft_s for _, ttft_s, _ in self.outcome.classes), np.inf])[self.slo_class]
        return self.finished & (self.by_request["ttft_s"] <= limits) & (self.late_gaps * 100 <= self.num_gaps)

    def of(self, metric: str, requests: Mask) -> Floats:
        """The known samples of a metric of these requests, ascending, seconds."""
        if metric == GAP_METRIC:
            return self.gap_s if requests.all() else self.gap_s[requests[self.gap_request]]
        samples = self.by_request[metric][requests]
        return np.sort(samples[~np.isnan(samples)])


def _column(values: Sequence[float | None]) -> Floats:
    return np.array(values, np.float64)
