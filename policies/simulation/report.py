"""What a simulated run amounts to: percentiles, attainment, fairness, as JSON-ready values.

Owns the report's keys. Percentiles are nearest rank over every request that got that far, finished or not: a cut run
does not forget its slow requests. Beside them `of_finished` says what a report of finished requests alone would.
"""

from typing import Any

import numpy as np

from policies.scheduling.lengths.lengths import Coverage
from policies.simulation.outcome import Outcome
from policies.simulation.samples import GAP_METRIC, REQUEST_METRICS, Floats, Mask, Samples, percentile

QUANTILES = (("p50", 0.50), ("p90", 0.90), ("p99", 0.99))
MOST_BUCKETS = 16
SMALLEST_BUCKET = 32

Figures = dict[str, Any]


def report(outcome: Outcome, wall_s: float, *, bucket_tokens: int | None = None) -> Figures:
    """The report as JSON-ready values; a figure without samples is None.

    `ttft_s` is to the first token, `ttft_prefill_s` to the end of the step that processed the last prompt token;
    `tokens_per_s` counts output tokens over the simulated time. `slo` gives, for each class, the share of requests
    whose first token came in time (those still without one are misses once they are late, and left out before) and
    the share of gaps between tokens within the limit. `fairness.jain` is of charged service at the last arrival.
    `goodput_rps` counts finished requests that kept both limits of their class. `prompt_lengths` are buckets of
    `bucket_tokens` tokens; without it the power of two that makes at most 16 buckets (512 for prompts up to 8,192).
    """
    samples = Samples(outcome)
    everyone = samples.everyone
    gaps = {"all": everyone, **{name: samples.slo_class == n for n, name in enumerate(samples.classes)}}
    num_tokens = int(samples.output_tokens.sum())
    group = _group(samples, everyone)
    return {
        "policy": outcome.policy,
        "requests": group["requests"],
        "ttft_s": group["ttft_s"],
        "ttft_prefill_s": group["ttft_prefill_s"],
        "tbt_s": {name: summary(samples.of(GAP_METRIC, requests)) for name, requests in gaps.items()},
        "tokens_per_s": num_tokens / outcome.simulated_s if outcome.simulated_s else None,
        "preemptions": outcome.preemptions,
        "slo": {
            name: {"ttft": _ttft_attainment(samples, number), "tbt": _tbt_attainment(samples, number)}
            for number, name in enumerate(samples.classes)
        },
        "fairness": {"max_gap": outcome.max_gap, "gap_ratio": outcome.max_gap_ratio, "jain": outcome.jain},
        "simulated_s": outcome.simulated_s,
        "wall_s": wall_s,
        "arrival_rate_rps": _arrival_rate(samples),
        "goodput_rps": group["goodput_rps"],
        **{metric: group[metric] for metric in REQUEST_METRICS if not metric.startswith("ttft")},
        "of_finished": {
            metric: summary(samples.of(metric, samples.finished)) for metric in ("ttft_s", "ttft_prefill_s")
        },
        "prefix": _prefix(samples),
        "steps": {
            "num": outcome.num_steps,
            "mean_tokens": outcome.num_step_tokens / outcome.num_steps if outcome.num_steps else None,
            "tile_fill": outcome.tile_fill if outcome.num_steps else None,
        },
        "classes": {name: _group(samples, samples.slo_class == n) for n, name in enumerate(samples.classes)},
        "tenants": {name: _group(samples, samples.tenant == n) for n, name in enumerate(samples.tenants)},
        "prompt_lengths": _buckets(samples, bucket_tokens),
        "recomputed_tokens": outcome.recomputed_tokens,
        "prediction": _prediction(outcome.coverage),
    }


def summary(ascending: Floats) -> dict[str, float | None]:
    """Percentiles, mean and number of samples in ascending order."""
    if not len(ascending):
        return {**{name: None for name, _ in QUANTILES}, "mean": None, "num": 0}
    return {
        **{name: percentile(ascending, quantile) for name, quantile in QUANTILES},
        "mean": float(ascending.mean()),
        "num": len(ascending),
    }


def _group(samples: Samples, requests: Mask) -> Figures:
    """The figures of some of the requests."""
    simulated_s = samples.outcome.simulated_s
    arrived, finished = int(requests.sum()), int((requests & samples.finished).sum())
    refused, cancelled = int((requests & samples.refused).sum()), int((requests & samples.cancelled).sum())
    return {
        "requests": {
            "arrived": arrived,
            "finished": finished,
            "unfinished": arrived - finished - refused - cancelled,
            "refused": refused,
            "cancelled": cancelled,
            "preempted": int((requests & samples.preempted).sum()),
        },
        **{metric: summary(samples.of(metric, requests)) for metric in (*REQUEST_METRICS, GAP_METRIC)},
        "goodput_rps": float((requests & samples.good).sum() / simulated_s) if simulated_s else None,
        "prompt_tokens": int(samples.prompt_tokens[requests].sum()),
        "output_tokens": int(samples.output_tokens[requests].sum()),
    }


def _arrival_rate(samples: Samples) -> float | None:
    """Requests per second up to the last arrival, as they came: clipped gaps make it more than the nominal rate."""
    if not len(samples.arrived_at_s) or not samples.arrived_at_s[-1]:
        return None
    return float(len(samples.arrived_at_s) / samples.arrived_at_s[-1])


def _prediction(coverage: Coverage) -> Figures | None:
    """How often the bounds held, of outputs that nobody cut short, and the mean interval; None: none were made."""
    num = coverage.num_observed
    if not num:
        return None
    return {
        "num": num,
        "coverage": {"lower": coverage.num_above_lower / num, "upper": coverage.num_below_upper / num},
        "interval_tokens": {
            "lower": coverage.lower_tokens / num,
            "point": coverage.point_tokens / num,
            "upper": coverage.upper_tokens / num,
        },
        "output_tokens": coverage.output_tokens / num,
    }


def _prefix(samples: Samples) -> Figures:
    """What the prefix cache saved, of the prompts that were started."""
    started = ~np.isnan(samples.by_request["scheduling_delay_s"])
    prompt_tokens, hit_tokens = int(samples.prompt_tokens[started].sum()), int(samples.prefix_hit_tokens.sum())
    return {
        "prompt_tokens": prompt_tokens,
        "hit_tokens": hit_tokens,
        "hit_share": hit_tokens / prompt_tokens if prompt_tokens else None,
    }


def _buckets(samples: Samples, bucket_tokens: int | None) -> list[Figures]:
    """Figures by prompt length, without gaps: they depend on what else runs, hardly on the prompt."""
    if not len(samples.prompt_tokens):
        return []
    longest = int(samples.prompt_tokens.max())
    size = bucket_tokens or SMALLEST_BUCKET
    while bucket_tokens is None and size * MOST_BUCKETS < longest:
        size *= 2
    numbers = (samples.prompt_tokens - 1) // size
    buckets = []
    for number in range(int(numbers.max()) + 1):
        requests = numbers == number
        if requests.any():
            figures = _group(samples, requests)
            wanted = ("requests", "ttft_s", "ttft_prefill_s", "scheduling_delay_s", "e2e_s")
            span = {"from_tokens": number * size + 1, "to_tokens": (number + 1) * size}
            buckets.append({**span, **{key: figures[key] for key in wanted}})
    return buckets


def _ttft_attainment(samples: Samples, number: int) -> float | None:
    outcome = samples.outcome
    _, ttft_s, _ = outcome.classes[number]
    ttft = samples.by_request["ttft_s"][samples.slo_class == number]
    waited = (outcome.simulated_s - samples.arrived_at_s)[samples.slo_class == number]
    judged = ~np.isnan(ttft) | (waited > ttft_s)
    return float((ttft[judged] <= ttft_s).mean()) if judged.any() else None


def _tbt_attainment(samples: Samples, number: int) -> float | None:
    requests = samples.slo_class == number
    num_gaps = int(samples.num_gaps[requests].sum())
    return 1.0 - int(samples.late_gaps[requests].sum()) / num_gaps if num_gaps else None
