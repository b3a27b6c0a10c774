"""The regression behind a fitted step model: from measured steps to what explains them and what does not.

Owns the fit. The model's form and its JSON are fitted_model.py; where the samples come from is not known here.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from policies.simulation.fitted_model import (
    DECODES,
    PROMPTS,
    Bucket,
    Curve,
    Delays,
    FittedModel,
    Noise,
)
from policies.simulation.step_shape import StepShape

Floats = NDArray[np.float64]

KNOTS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192, 16384)
LEAST_OF_A_STRETCH = 8
"""Steps between two knots; with fewer there is one knot less."""
LEAST_STEPS = 32
NUM_ROUNDS = 10
"""Of reweighting."""
HUBER = 1.5
"""Typical deviations from which on a step counts less: one that was disturbed must not bend the curve."""
LEAST_DEVIATION = 0.01
"""Smaller typical ones count as this much: else, where most steps fit exactly, rare ones would count for nothing."""
NUM_QUANTILES = 401
"""Kept of what the fit leaves and of each delay, at most."""
RIDGE = 1e-9
"""Of columns scaled to length 1: decides between terms that only ever came together."""


class FitError(Exception):
    """Steps to which nothing can be fitted; the sentence says what is missing."""


class StepSample(NamedTuple):
    """One step as it was measured; times in seconds on one clock."""

    executor: int
    shape: StepShape
    planned_at_s: float
    begun_at_s: float
    """`max(launched, end of the step before)`."""
    ended_at_s: float
    heard_at_s: float
    """When the scheduler heard of its end: its tokens are on their way to readers, and the next plan is made."""

    @property
    def step_time_s(self) -> float:
        """How long the device had it."""
        return self.ended_at_s - self.begun_at_s


def fit(samples: Sequence[StepSample]) -> FittedModel:
    """The model under which these steps, in the order they ended, are least surprising.

    Least squares of relative errors with terms that are not negative (Lawson and Hanson, 1974), reweighted by Huber's
    function. A term without a sample of its kind is 0.

    Raises:
        FitError: there are fewer than 32 steps.
    """
    if len(samples) < LEAST_STEPS:
        raise FitError(f"{len(samples)} measured steps; a step model needs {LEAST_STEPS}")
    shapes = np.array([sample.shape for sample in samples], np.float64)
    prefill_tokens, decodes = shapes.T[:2]
    num_tokens = prefill_tokens + decodes
    # A clock's resolution: a step of no time would have no relative error.
    measured = np.array([sample.step_time_s for sample in samples]).clip(1e-6, None)
    token_knots, decode_knots = _knots(num_tokens), _knots(decodes)
    columns = [
        np.ones((len(samples), 1)),
        ramps(num_tokens, token_knots),
        ramps(decodes, decode_knots),
        shapes[:, 2:],
        np.column_stack([prefill_tokens > 0, (prefill_tokens > 0) & (decodes > 0)]).astype(np.float64),
    ]
    terms, fitted = _regress(np.concatenate(columns, axis=1), measured)
    of_tokens = 1 + len(token_knots) - 1
    of_decodes = of_tokens + len(decode_knots) - 1
    context_token_s, prefill_s, prefill_pair_s, prefill_step_s, mixed_step_s = terms[of_decodes:].tolist()
    ratios = measured / fitted
    return FittedModel(
        tokens=Curve.rising(token_knots, float(terms[0]), terms[1:of_tokens].tolist()),
        decodes=Curve.rising(decode_knots, 0.0, terms[of_tokens:of_decodes].tolist()),
        context_token_s=context_token_s,
        prefill_s=prefill_s,
        prefill_pair_s=prefill_pair_s,
        prefill_step_s=prefill_step_s,
        mixed_step_s=mixed_step_s,
        noise=_noise(ratios, prefill_tokens > 0),
        delays=_delays(samples),
        num_steps=len(samples),
        error=float(np.median(np.abs(ratios - 1))),
        buckets=_buckets(num_tokens, prefill_tokens > 0, ratios),
    )


def ramps(counts: Floats, knots: Sequence[int]) -> Floats:
    """[counts, stretches]: how much of each stretch between knots lies below each count, from 0 to 1."""
    edges = np.array(knots, np.float64)
    return ((counts[:, None] - edges[:-1]) / np.diff(edges)).clip(0.0, 1.0)


def least_squares(columns: Floats, wanted: Floats) -> Floats:
    """The terms, none below 0, whose sum over the columns comes closest to what is wanted (Lawson and Hanson, 1974)."""
    lengths = np.sqrt((columns**2).sum(axis=0))
    scaled = columns / np.where(lengths, lengths, 1.0)
    products = scaled.T @ scaled + RIDGE * np.eye(columns.shape[1])
    target = scaled.T @ wanted
    terms, free = np.zeros(len(target)), np.zeros(len(target), np.bool_)
    # Each round frees one term; the method ends by itself, the bound is against rounding.
    for _ in range(4 * len(target)):
        gains = np.where(free, -np.inf, target - products @ terms)
        if gains.max() <= RIDGE * np.abs(target).max():
            break
        free[gains.argmax()] = True
        while True:
            tried = np.zeros(len(target))
            tried[free] = np.linalg.solve(products[np.ix_(free, free)], target[free])
            below = free & (tried <= 0)
            if not below.any():
                break
            terms += (terms[below] / (terms[below] - tried[below])).min() * (tried - terms)
            free &= ~(below & (terms <= RIDGE * terms.max()))
            terms[~free] = 0.0
        terms = tried
    return terms / np.where(lengths, lengths, 1.0)


def _regress(columns: Floats, measured: Floats) -> tuple[Floats, Floats]:
    """Terms, and what they make of each step."""
    weights = 1 / measured
    for _ in range(NUM_ROUNDS):
        terms = least_squares(columns * weights[:, None], measured * weights)
        fitted = (columns @ terms).clip(1e-9, None)
        deviations = np.abs(measured / fitted - 1)
        typical = max(LEAST_DEVIATION, 1.4826 * float(np.median(deviations)))
        weights = np.sqrt(np.minimum(1.0, HUBER * typical / deviations.clip(1e-12, None)).clip(1e-6, None)) / fitted
    return terms, fitted


def _knots(counts: Floats) -> tuple[int, ...]:
    """From the least count to the largest, with enough steps between each two."""
    least, most = int(counts.min()), int(counts.max())
    if least == most:
        return (least, least + 1)
    knots = [least]
    for knot in (*(each for each in KNOTS if least < each < most), most):
        if np.count_nonzero((counts > knots[-1]) & (counts <= knot)) >= LEAST_OF_A_STRETCH:
            knots.append(knot)
    return (*knots, most) if len(knots) == 1 else (*knots[:-1], most)


def _noise(ratios: Floats, with_prompts: NDArray[np.bool_]) -> dict[str, Noise]:
    kinds = {DECODES: ratios[~with_prompts], PROMPTS: ratios[with_prompts]}
    return {
        name: Noise(float(found.mean()), _quantiles(found)) if len(found) >= LEAST_OF_A_STRETCH else Noise()
        for name, found in kinds.items()
    }


def _quantiles(values: Floats) -> tuple[float, ...]:
    """Of a handful the median alone: one that is out of line, as beside a gap in the samples, would weigh a fifth."""
    if not len(values):
        return (0.0,)
    if len(values) < LEAST_OF_A_STRETCH:
        return (float(np.median(values)),)
    return tuple(np.quantile(values, np.linspace(0, 1, min(NUM_QUANTILES, len(values)))).tolist())


def _delays(samples: Sequence[StepSample]) -> Delays:
    launches, relaunches = [], []
    for executor in {sample.executor for sample in samples}:
        for before, after in pairwise([sample for sample in samples if sample.executor == executor]):
            if after.planned_at_s >= before.ended_at_s:
                launches.append(after.begun_at_s - after.planned_at_s)
            else:
                relaunches.append(after.begun_at_s - before.ended_at_s)
    returns = [sample.heard_at_s - sample.ended_at_s for sample in samples]
    return Delays(*(_quantiles(np.array(found).clip(0.0, None)) for found in (launches, relaunches, returns)))


def _buckets(num_tokens: Floats, with_prompts: NDArray[np.bool_], ratios: Floats) -> list[Bucket]:
    buckets = []
    edges = [0, 1, 4, 16, 64, 256, 1024, float("inf")]
    for name, kind in ((DECODES, ~with_prompts), (PROMPTS, with_prompts)):
        for above, most in pairwise(edges):
            found = ratios[kind & (num_tokens > above) & (num_tokens <= most)]
            if len(found):
                bias = float(np.median(found)) - 1
                error = float(np.median(np.abs(found - 1)))
                buckets.append(Bucket(name, int(above) + 1, len(found), bias, error))
    return buckets
