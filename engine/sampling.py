"""Chooses the next token of each row from its logits.

A row's random number is a hash of (its seed, its output position) and of nothing else, so its tokens depend neither on
its batch mates nor on how its prompt was chunked or how often it was preempted.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SMALL_TOP_K = 1024
"""Up to here the largest k are selected; beyond it, and for top_p alone, the vocabulary is sorted."""


class SamplingRows(NamedTuple):
    """Sampling settings of the rows of one step, one entry a row."""

    temperatures: NDArray[np.float32]
    top_ps: NDArray[np.float32]
    top_ks: NDArray[np.int64]
    seeds: NDArray[np.int64]
    output_positions: NDArray[np.int64]

    def at(self, indices: NDArray[np.intp]) -> "SamplingRows":
        """Some of the rows."""
        return SamplingRows(
            self.temperatures[indices],
            self.top_ps[indices],
            self.top_ks[indices],
            self.seeds[indices],
            self.output_positions[indices],
        )


def uniform(seeds: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """Numbers in [0, 1) of 24 bits: SplitMix64 (Steele et al., 2014) of the seed, then of the position."""
    mixed = _mix(_mix(seeds.astype(np.uint64)) + positions.astype(np.uint64))
    return (mixed >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def sample(logits: Tensor, rows: SamplingRows) -> Tensor:
    """A token id for each row of logits [rows, vocabulary]: int64 [rows] on their device.

    Temperature 0 takes the largest logit. Otherwise temperature, top_k and top_p apply in this order.
    """
    drawn = rows.temperatures > 0
    if not drawn.any():
        return logits.argmax(-1)
    cut = drawn & ((rows.top_ps < 1) | ((rows.top_ks > 0) & (rows.top_ks < logits.shape[-1])))
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for chosen, method in ((~drawn, _greedy), (drawn & ~cut, _from_all), (cut, _from_some)):
        indices = np.flatnonzero(chosen)
        if len(indices):
            where = torch.from_numpy(indices).to(logits.device)
            tokens[where] = method(logits[where], rows.at(indices))
    return tokens


def _greedy(logits: Tensor, _rows: SamplingRows) -> Tensor:
    return logits.argmax(-1)


def _from_all(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Inverse of the cumulative distribution, in token order: no sort."""
    return _invert(_probabilities(logits, rows), rows)


def _from_some(logits: Tensor, rows: SamplingRows) -> Tensor:
    """From the likeliest tokens only."""
    vocabulary = logits.shape[-1]
    limits = np.where(rows.top_ks > 0, np.minimum(rows.top_ks, vocabulary), vocabulary)
    widest = int(limits.max())
    if widest <= SMALL_TOP_K:
        values, tokens = logits.topk(widest, -1)
    else:
        values, tokens = logits.sort(stable=True, dim=-1, descending=True)
    beyond = torch.arange(values.shape[-1], device=logits.device) >= _column(limits, logits.device)
    probabilities = _probabilities(values.masked_fill(beyond, -torch.inf), rows)
    before = probabilities.cumsum(-1) - probabilities
    probabilities.masked_fill_(before >= _column(rows.top_ps, logits.device), 0)
    # The likeliest token always stays, so there is always one to draw.
    index = _invert(probabilities, rows)
    return tokens.gather(-1, index.unsqueeze(-1)).squeeze(-1)


def _probabilities(logits: Tensor, rows: SamplingRows) -> Tensor:
    return (logits.float() / _column(rows.temperatures, logits.device)).softmax(-1)


def _invert(probabilities: Tensor, rows: SamplingRows) -> Tensor:
    """The first index whose cumulative weight passes the row's random share of the total."""
    cumulative = probabilities.cumsum(-1)
    share = _column(uniform(rows.seeds, rows.output_positions), probabilities.device)
    index = torch.searchsorted(cumulative, share * cumulative[:, -1:], right=True).squeeze(-1)
    return index.clamp_(max=probabilities.shape[-1] - 1)


def _column(values: NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device).unsqueeze(-1)
