"""What a simulated run amounts to: percentiles, attainment, fairness; for machines and for people.

Owns the report's keys. Percentiles are nearest rank over every request that got that far, finished or not: a cut run
does not forget its slow requests.
"""

from collections.abc import Sequence
from math import ceil
from typing import Any

from policies.simulation.driver import Outcome, Served

QUANTILES = (("p50", 0.50), ("p90", 0.90), ("p99", 0.99))


def percentile(ascending: Sequence[float], quantile: float) -> float:
    """The smallest sample whose cumulative share is at least `quantile` (nearest rank).

    Raises:
        ValueError: there is no sample.
    """
    if not ascending:
        raise ValueError("a percentile of no samples")
    return ascending[max(0, ceil(quantile * len(ascending)) - 1)]


def report(outcome: Outcome, wall_s: float) -> dict[str, Any]:
    """The report as JSON-ready values; a figure without samples is None.

    `ttft_s` is to the first token, `ttft_prefill_s` to the end of the step that processed the last prompt token;
    `tokens_per_s` counts output tokens over the simulated time. `slo` gives, for each class, the share of requests
    whose first token came in time (those still without one are misses once they are late, and left out before) and
    the share of gaps between tokens within the limit. `fairness.jain` is of charged service at the last arrival.
    """
    served = outcome.served
    finished = sum(request.finished_at_s is not None for request in served)
    refused = sum(bool(request.refusal) for request in served)
    gaps = {name: sorted(outcome.gaps_s.get(name, [])) for name, _, _ in outcome.classes}
    everything = sorted(gap for samples in gaps.values() for gap in samples)
    num_tokens = sum(request.output_tokens for request in served)
    return {
        "policy": outcome.policy,
        "requests": {
            "arrived": len(served),
            "finished": finished,
            "unfinished": len(served) - finished - refused,
            "refused": refused,
        },
        "ttft_s": _waits([_since_arrival(request, request.first_token_at_s) for request in served]),
        "ttft_prefill_s": _waits([_since_arrival(request, request.prefill_done_at_s) for request in served]),
        "tbt_s": {"all": _gaps(everything), **{name: _gaps(samples) for name, samples in gaps.items()}},
        "tokens_per_s": num_tokens / outcome.simulated_s if outcome.simulated_s else None,
        "preemptions": outcome.preemptions,
        "slo": {
            name: {
                "ttft": _ttft_attainment(outcome, name, ttft_s),
                "tbt": _share([gap <= tbt_s for gap in gaps[name]]),
            }
            for name, ttft_s, tbt_s in outcome.classes
        },
        "fairness": {"max_gap": outcome.max_gap, "gap_ratio": outcome.max_gap_ratio, "jain": outcome.jain},
        "simulated_s": outcome.simulated_s,
        "wall_s": wall_s,
    }


def table(figures: dict[str, Any]) -> str:
    """The report for people: a dozen lines."""
    requests = figures["requests"]
    lines = [
        f"policy {figures['policy']}: {_counts(requests)}",
        f"{'seconds':24}{'p50':>10}{'p90':>10}{'p99':>10}{'mean':>10}",
    ]
    for key, label in (("ttft_s", "to first token"), ("ttft_prefill_s", "to end of prefill")):
        figure = figures[key]
        lines.append(f"{label:24}" + "".join(_cell(figure[name]) for name in ("p50", "p90", "p99", "mean")))
    for name, figure in figures["tbt_s"].items():
        label = f"between tokens, {name}"
        lines.append(f"{label:24}{_cell(figure['p50'])}{'':10}{_cell(figure['p99'])}")
    lines.append(f"{'within limits':24}{'ttft':>10}{'tbt':>10}")
    for name, figure in figures["slo"].items():
        lines.append(f"  {name:22}{_percent(figure['ttft'])}{_percent(figure['tbt'])}")
    rate = figures["tokens_per_s"]
    lines += [
        f"output tokens per second {0.0 if rate is None else rate:.1f}, preemptions {figures['preemptions']}",
        "fairness: gap {max_gap:.0f} = {gap_ratio:.2f} of the bound, Jain {jain:.3f}".format_map(figures["fairness"]),
        f"simulated {figures['simulated_s']:.1f} s in {figures['wall_s']:.1f} s",
    ]
    return "\n".join(lines)


def _counts(requests: dict[str, int]) -> str:
    return "requests " + ", ".join(f"{number} {name}" for name, number in requests.items())


def _since_arrival(request: Served, at_s: float | None) -> float | None:
    return None if at_s is None else at_s - request.asked.arrived_at_s


def _waits(samples: list[float | None]) -> dict[str, float | None]:
    ascending = sorted(sample for sample in samples if sample is not None)
    if not ascending:
        return {**{name: None for name, _ in QUANTILES}, "mean": None}
    return {
        **{name: percentile(ascending, quantile) for name, quantile in QUANTILES},
        "mean": sum(ascending) / len(ascending),
    }


def _gaps(ascending: list[float]) -> dict[str, float | None]:
    if not ascending:
        return {"p50": None, "p99": None}
    return {"p50": percentile(ascending, 0.50), "p99": percentile(ascending, 0.99)}


def _ttft_attainment(outcome: Outcome, slo_class: str, ttft_s: float) -> float | None:
    verdicts = []
    for request in outcome.served:
        if request.slo_class != slo_class:
            continue
        waited = _since_arrival(request, request.first_token_at_s)
        if waited is not None:
            verdicts.append(waited <= ttft_s)
        elif outcome.simulated_s - request.asked.arrived_at_s > ttft_s:
            verdicts.append(False)
    return _share(verdicts)


def _share(verdicts: list[bool]) -> float | None:
    return sum(verdicts) / len(verdicts) if verdicts else None


def _cell(value: float | None) -> str:
    return f"{'-':>10}" if value is None else f"{value:>10.4f}"


def _percent(share: float | None) -> str:
    return f"{'-':>10}" if share is None else f"{share:>10.1%}"
