"""What a run must keep to count as served: `p50(ttft_prefill_s)<0.5,p99(tbt_s.paid)<0.1`.

Owns the grammar, the verdict on a run, and the knowledge that a run cannot keep a criterion any more. A request that
did not finish counts as infinite: a system that leaves its slow requests undone must not look fast.
"""

import re
from collections.abc import Sequence
from math import ceil, inf
from typing import NamedTuple

import numpy as np

from policies.simulation.driver import Simulation
from policies.simulation.outcome import Served
from policies.simulation.samples import GAP_METRIC, REQUEST_METRICS, Floats, Samples, percentile
from policies.simulation.workload import TraceRequest

MAX_UNFINISHED = 0.04
"""Share of the arrivals that may be without an end (SLAI's evaluation)."""
ALL = "all"
MEAN = "mean"
CRITERION = re.compile(
    r"\s*(?P<statistic>[a-z0-9.]+)\(\s*(?P<metric>[a-z0-9_]+)(\.(?P<group>[^)<\s]+))?\s*\)\s*<(?P<limit>[^<]+)"
)
FORM = (
    "STATISTIC(METRIC)<LIMIT or STATISTIC(METRIC.CLASS)<LIMIT, with STATISTIC mean or p1 to p99.9,"
    f" METRIC one of {', '.join((*REQUEST_METRICS, GAP_METRIC))}, and LIMIT in seconds"
)


class CriterionError(ValueError):
    """A criterion that cannot be used; the sentence says which and what is accepted."""


class Criterion(NamedTuple):
    """One condition."""

    text: str
    quantile: float | None
    """None: the mean."""
    metric: str
    slo_class: str | None
    """None: all requests."""
    limit: float

    def value(self, samples: Samples) -> float | None:
        """The figure of a run; infinite where too many did not finish, None where there is no sample."""
        requests = samples.everyone
        if self.slo_class is not None:
            number = samples.classes.index(self.slo_class)
            # A request that was never released has no class yet: it counts in every one.
            requests = (samples.slo_class == number) | ((samples.slo_class < 0) & ~samples.finished)
        if self.metric == GAP_METRIC:
            return self._statistic(samples.of(GAP_METRIC, requests))
        known = samples.of(self.metric, requests & samples.finished)
        num_unfinished = int((requests & ~samples.finished).sum())
        return self._statistic(np.concatenate((known, np.full(num_unfinished, inf))))

    def _statistic(self, ascending: Floats) -> float | None:
        if not len(ascending):
            return None
        return float(ascending.mean()) if self.quantile is None else percentile(ascending, self.quantile)


class Verdict(NamedTuple):
    """What a run was found to be."""

    met: bool
    values: list[tuple[str, float | None]]
    """Each criterion as written, and the run's figure."""
    unfinished_share: float


def parse_criteria(text: str, classes: Sequence[str]) -> list[Criterion]:
    """Criteria separated by commas.

    Raises:
        CriterionError: one of them has not the form, or names a class that the policy does not have.
    """
    return [_parse(part, classes) for part in text.split(",")]


def judge(criteria: Sequence[Criterion], samples: Samples, max_unfinished: float = MAX_UNFINISHED) -> Verdict:
    """Whether a run keeps all criteria and leaves at most that share of its requests without an end. A criterion
    without samples is kept: nobody was there to be late.
    """
    values = [(criterion.text, criterion.value(samples)) for criterion in criteria]
    kept = all(value is None or value < criterion.limit for criterion, (_, value) in zip(criteria, values, strict=True))
    num_requests = len(samples.finished)
    unfinished_share = float((~samples.finished).sum()) / num_requests if num_requests else 0.0
    return Verdict(kept and unfinished_share <= max_unfinished, values, unfinished_share)


class Hopeless:
    """Whether a run that goes on can no longer keep a criterion: more samples are past its limit than the quantile
    allows, even if every later one were within. Right for quantiles over all requests of waits, and of gaps; silent on
    everything else, which the end decides.
    """

    def __init__(
        self, criteria: Sequence[Criterion], requests: Sequence[TraceRequest], duration_s: float | None
    ) -> None:
        arriving = [r for r in requests if duration_s is None or r.arrived_at_s <= duration_s]
        self._waits = [
            (
                c.limit,
                _allowed(c.quantile, len(arriving)),
                "first_token_at_s" if c.metric == "ttft_s" else "prefill_done_at_s",
            )
            for c in criteria
            if c.quantile is not None and c.slo_class is None and c.metric in ("ttft_s", "ttft_prefill_s")
        ]
        num_gaps = sum(r.output_tokens - 1 for r in arriving)
        self._gaps = [
            (c.limit, _allowed(c.quantile, num_gaps), c.slo_class)
            for c in criteria
            if c.quantile is not None and c.metric == GAP_METRIC
        ]
        self._late_gaps = [0] * len(self._gaps)
        self._seen_steps = 0

    def __call__(self, simulation: Simulation) -> bool:
        """Look at a run as it is now."""
        served, now = simulation.served, simulation.now
        for limit, allowed, stamp in self._waits:
            if sum(_is_late(request, stamp, limit, now) for request in served.values()) > allowed:
                return True
        if self._gaps:
            gaps = simulation.tokens.gaps(self._seen_steps)
            self._seen_steps = simulation.tokens.num_steps
            for row, (limit, allowed, slo_class) in enumerate(self._gaps):
                late = gaps.requests[gaps.seconds >= limit].tolist()
                self._late_gaps[row] += sum(slo_class in (None, served[request].slo_class) for request in late)
                if self._late_gaps[row] > allowed:
                    return True
        return False


def _is_late(request: Served, stamp: str, limit: float, now: float) -> bool:
    at_s = request.first_token_at_s if stamp == "first_token_at_s" else request.prefill_done_at_s
    return (now if at_s is None else at_s) - request.asked.arrived_at_s >= limit


def _allowed(quantile: float, num_samples: int) -> int:
    """How many of the samples may be past the limit with the percentile still within."""
    return num_samples - max(1, ceil(quantile * num_samples))


def _parse(text: str, classes: Sequence[str]) -> Criterion:
    match = CRITERION.fullmatch(text)
    if match is None:
        raise CriterionError(f"`{text.strip()}` is no criterion: write {FORM}")
    statistic, metric, group = match["statistic"], match["metric"], match["group"]
    written = f"`{text.strip()}`: "
    if metric not in (*REQUEST_METRICS, GAP_METRIC):
        raise CriterionError(f"{written}there is no metric `{metric}`: write {FORM}")
    if group not in (None, ALL, *classes):
        raise CriterionError(f"{written}the policy has no class `{group}`; it has {', '.join(classes)}")
    slo_class = None if group in (None, ALL) else group
    return Criterion(text.strip(), _quantile(statistic, written), metric, slo_class, _limit(match["limit"], written))


def _quantile(statistic: str, written: str) -> float | None:
    if statistic == MEAN:
        return None
    number = _number(statistic.removeprefix("p")) if statistic.startswith("p") else None
    if number is None or not 1 <= number <= 99.9:
        raise CriterionError(f"{written}there is no statistic `{statistic}`: write {FORM}")
    return number / 100


def _limit(text: str, written: str) -> float:
    limit = _number(text)
    if limit is None or not 0 < limit < inf:
        raise CriterionError(f"{written}the limit `{text.strip()}` is no number of seconds above 0")
    return limit


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
