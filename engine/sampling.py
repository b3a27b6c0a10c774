"""Chooses the next token of each row from its logits.

A random number is a hash of (the row's seed, its output position, the token) and of nothing else, so tokens depend
neither on batch mates nor on how a prompt was chunked or how often it was preempted. Tokens are drawn by the Gumbel-max
trick: each has noise of its own, so a change in a logit's last bits moves no other token's border, as it would in a
cumulative distribution.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TOKEN_FACTOR = -0x61C88647
"""The golden ratio in 32 bits, as a signed number: neighbouring tokens get far keys."""
ROUNDS = ((16, -0x7A143595), (13, -0x3D4D51CB))
"""Shifts and factors of MurmurHash3's finalizer, as signed numbers: processors multiply vectors of 32 bits."""
NUMBERS_AT_ONCE = 2**21
"""Noise made at once: bounds its memory to some 50 MiB."""
FEW = 1024
"""So many likeliest tokens are selected without sorting; top_k and top_p seldom leave more."""


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


Method = Callable[[Tensor, SamplingRows], Tensor]


def row_keys(seeds: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int32]:
    """SplitMix64 (Steele et al., 2014) of the seed, then of the position; its upper half."""
    mixed = _mix(_mix(seeds.astype(np.uint64)) + positions.astype(np.uint64))
    return (mixed >> np.uint64(32)).astype(np.uint32).view(np.int32)


def uniform(keys: Tensor, tokens: Tensor) -> Tensor:
    """Numbers strictly between 0 and 1, float32, of row keys, int32, and token ids, int64, that broadcast together.

    Torch shifts int32 with its sign: what that brings in is masked away.
    """
    mixed = keys ^ (tokens.to(torch.int32) * TOKEN_FACTOR)
    for shift, factor in ROUNDS:
        mixed ^= (mixed >> shift).bitwise_and_((1 << 32 - shift) - 1)
        mixed *= factor
    mixed ^= (mixed >> 16).bitwise_and_(0xFFFF)
    # Of 31 bits, small numbers keep all; the largest must not round to 1.
    return mixed.bitwise_and_(2**31 - 1).float().mul_(2**-31 * (1 - 2**-23)).add_(2**-32)


def gumbel(keys: Tensor, tokens: Tensor) -> Tensor:
    """-log of exponential numbers, for row keys and token ids as in `uniform`."""
    return uniform(keys, tokens).neg_().log1p_().neg_().log_().neg_()


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
    cut = drawn & ((rows.top_ps < 1) | (_limits(rows, logits.shape[-1]) < logits.shape[-1]))
    return _grouped(logits, rows, ((~drawn, _largest), (drawn & ~cut, _from_all), (cut, _from_likeliest)))


def _grouped(scores: Tensor, rows: SamplingRows, groups: tuple[tuple[NDArray[np.bool_], Method], ...]) -> Tensor:
    """Each group of rows by its method."""
    tokens = torch.empty(len(scores), dtype=torch.int64, device=scores.device)
    for chosen, method in groups:
        indices = np.flatnonzero(chosen)
        if len(indices):
            where = torch.from_numpy(indices).to(scores.device)
            tokens[where] = method(scores[where], rows.at(indices))
    return tokens


def _largest(logits: Tensor, _rows: SamplingRows) -> Tensor:
    return logits.argmax(-1)


def _from_all(logits: Tensor, rows: SamplingRows) -> Tensor:
    """No sort, and no probabilities: their common factor moves no argmax."""
    vocabulary = torch.arange(logits.shape[-1], device=logits.device)
    keys = _column(row_keys(rows.seeds, rows.output_positions), logits.device)
    temperatures = _column(rows.temperatures, logits.device)
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    num_rows = max(1, NUMBERS_AT_ONCE // len(vocabulary))
    for start in range(0, len(logits), num_rows):
        part = slice(start, start + num_rows)
        tokens[part] = gumbel(keys[part], vocabulary).add_(logits[part].float() / temperatures[part]).argmax(-1)
    return tokens


def _from_likeliest(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Sorts the vocabulary only for rows that may need more than its `FEW` likeliest tokens."""
    probabilities = _probabilities(logits, rows)
    few = min(FEW, logits.shape[-1])
    wide = _limits(rows, logits.shape[-1]) > few
    if wide.any() and logits.device.type == "cpu":  # elsewhere looking would wait for the device
        covered = probabilities.topk(few, -1).values.sum(-1).numpy() >= rows.top_ps
        wide &= ~covered | (rows.top_ks > few)  # a top_k's total needs all of its tokens
    return _grouped(probabilities, rows, ((~wide, _from_few), (wide, _from_sorted)))


def _from_few(probabilities: Tensor, rows: SamplingRows) -> Tensor:
    values, tokens = probabilities.topk(min(FEW, probabilities.shape[-1]), -1)
    return _cut(values, tokens, rows)


def _from_sorted(probabilities: Tensor, rows: SamplingRows) -> Tensor:
    values, tokens = probabilities.sort(stable=True, dim=-1, descending=True)
    return _cut(values, tokens, rows)


def _cut(values: Tensor, tokens: Tensor, rows: SamplingRows) -> Tensor:
    """From descending probabilities of the whole distribution: the first top_k, of these the first top_p."""
    limits = _limits(rows, values.shape[-1])
    beyond = torch.arange(values.shape[-1], device=values.device) >= _column(limits, values.device)
    left = values.masked_fill(beyond, 0)
    # Without a top_k the total is 1, of which `values` may hold only the likeliest part.
    total = torch.where(_column(rows.top_ks > 0, values.device), left.sum(-1, keepdim=True), 1.0)
    before = left.cumsum(-1) - left
    # The likeliest token always stays, so there is always one to draw.
    kept = left.masked_fill(before >= _column(rows.top_ps, values.device) * total, 0)
    keys = _column(row_keys(rows.seeds, rows.output_positions), values.device)
    chosen = gumbel(keys, tokens).add_(kept.log_()).argmax(-1, keepdim=True)
    return tokens.gather(-1, chosen).squeeze(-1)


def _limits(rows: SamplingRows, vocabulary: int) -> NDArray[np.int64]:
    """How many tokens top_k leaves."""
    return np.where(rows.top_ks > 0, np.minimum(rows.top_ks, vocabulary), vocabulary)


def _probabilities(logits: Tensor, rows: SamplingRows) -> Tensor:
    return (logits.float() / _column(rows.temperatures, logits.device)).softmax(-1)


def _column(values: NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device).unsqueeze(-1)
