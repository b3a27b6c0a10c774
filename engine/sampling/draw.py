"""Chooses the next token of each row from its logits: temperature, min_p, top_k and top_p.

Tokens are drawn by the Gumbel-max trick: each has noise of its own, so a change in a logit's last bits moves no other
token's border, as it would in a cumulative distribution.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.sampling.noise import gumbel, row_keys
from engine.sampling.rows import SamplingRows, column
from engine.transfer import on_device

NUMBERS_AT_ONCE = 2**21
"""Noise made at once: bounds its memory to some 50 MiB."""
FEW = (64, 1024)
"""So many likeliest tokens are selected without sorting, the larger number of rows that the smaller does not do for.
top_k and top_p seldom leave more."""
LEAST_TEMPERATURE = 1e-5
"""Below it the largest logit is taken: divided by less, logits could leave the range of float32."""

Method = Callable[[Tensor, SamplingRows], Tensor]


def sample(logits: Tensor, rows: SamplingRows) -> Tensor:
    """A token id for each row of logits [rows, vocabulary]: int64 [rows] on their device.

    Tokens that must not come have a logit of -inf; each row has a finite one. Temperature 0 takes the largest logit.
    Otherwise temperature, min_p (Nguyen et al., 2024), top_k and top_p (Holtzman et al., 2020) apply in this order;
    each sees only what the one before has left.
    """
    drawn = rows.temperatures >= LEAST_TEMPERATURE
    if not drawn.any():
        return _largest_of(logits)
    cut = drawn & ((rows.top_ps < 1) | (_limits(rows, logits.shape[-1]) < logits.shape[-1]))
    return _grouped(logits, rows, ((~drawn, _largest), (drawn & ~cut, _from_all), (cut, _from_likeliest)))


def _grouped(scores: Tensor, rows: SamplingRows, groups: tuple[tuple[NDArray[np.bool_], Method], ...]) -> Tensor:
    """Each group of rows by its method; one that is all rows without a copy of them."""
    tokens = torch.empty(len(scores), dtype=torch.int64, device=scores.device)
    for chosen, method in groups:
        if chosen.all():
            return method(scores, rows)
        indices = np.flatnonzero(chosen)
        if len(indices):
            where = on_device(indices, scores.device)
            tokens[where] = method(scores[where], rows.at(indices))
    return tokens


def _largest(logits: Tensor, _rows: SamplingRows) -> Tensor:
    return _largest_of(logits)


def _from_all(logits: Tensor, rows: SamplingRows) -> Tensor:
    """No sort, and no probabilities: their common factor moves no argmax."""
    vocabulary = torch.arange(logits.shape[-1], device=logits.device)
    keys = column(row_keys(rows.seeds, rows.output_positions), logits.device)
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    num_rows = max(1, NUMBERS_AT_ONCE // len(vocabulary))
    for start in range(0, len(logits), num_rows):
        part = slice(start, start + num_rows)
        tokens[part] = _largest_of(gumbel(keys[part], vocabulary).add_(_scaled(logits[part], rows.at(part))))
    return tokens


def _from_likeliest(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Sorts the vocabulary only for rows that may need more than a few of its likeliest tokens."""
    probabilities = _scaled(logits, rows).softmax(-1)
    if logits.device.type == "cpu":
        return _from_as_few_as_hold(probabilities, rows)
    wide = _limits(rows, logits.shape[-1]) > FEW[-1]  # looking how many are needed would wait for the device
    return _grouped(probabilities, rows, ((~wide, _from_few), (wide, _from_sorted)))


def _from_as_few_as_hold(probabilities: Tensor, rows: SamplingRows) -> Tensor:
    """Looks at more tokens only of rows whose top_k or top_p they may not hold."""
    size = probabilities.shape[-1]
    tokens = torch.empty(len(probabilities), dtype=torch.int64)
    left = np.arange(len(probabilities))
    for few in FEW:
        some = rows.at(left)
        considered = probabilities if len(left) == len(tokens) else probabilities[torch.from_numpy(left)]
        values, likeliest = considered.topk(min(few, size), -1)
        # A top_k's total needs all of its tokens.
        held = (_limits(some, size) <= few) | ((some.top_ks == 0) & (values.sum(-1).numpy() >= some.top_ps))
        done = np.flatnonzero(held)
        where = torch.from_numpy(done)
        tokens[torch.from_numpy(left[done])] = _cut(values[where], likeliest[where], some.at(done))
        left = left[~held]
        if not len(left):
            return tokens
    tokens[torch.from_numpy(left)] = _from_sorted(probabilities[torch.from_numpy(left)], rows.at(left))
    return tokens


def _from_few(probabilities: Tensor, rows: SamplingRows) -> Tensor:
    values, tokens = probabilities.topk(min(FEW[-1], probabilities.shape[-1]), -1)
    return _cut(values, tokens, rows)


def _from_sorted(probabilities: Tensor, rows: SamplingRows) -> Tensor:
    values, tokens = probabilities.sort(stable=True, dim=-1, descending=True)
    return _cut(values, tokens, rows)


def _cut(values: Tensor, tokens: Tensor, rows: SamplingRows) -> Tensor:
    """From descending probabilities of the whole distribution: the first top_k, of these the first top_p."""
    limits = _limits(rows, values.shape[-1])
    beyond = torch.arange(values.shape[-1], device=values.device) >= column(limits, values.device)
    left = values.masked_fill(beyond, 0)
    # Not `sum`: threads share the sum of a single long row, and its last bits would differ from those in a crowd.
    upto = left.cumsum(-1)
    # Without a top_k the total is 1, of which `values` may hold only the likeliest part.
    total = torch.where(column(rows.top_ks > 0, values.device), upto[:, -1:], 1.0)
    before = upto - left
    # The likeliest token always stays, so there is always one to draw.
    kept = left.masked_fill(before >= column(rows.top_ps, values.device) * total, 0)
    keys = column(row_keys(rows.seeds, rows.output_positions), values.device)
    chosen = _largest_of(gumbel(keys, tokens).add_(kept.log_())).unsqueeze(-1)
    return tokens.gather(-1, chosen).squeeze(-1)


def _largest_of(scores: Tensor) -> Tensor:
    """Where each row of [rows, numbers] is largest, int64 [rows]. On a CPU by numpy: torch takes ten times as long."""
    return torch.from_numpy(scores.float().numpy().argmax(-1)) if scores.device.type == "cpu" else scores.argmax(-1)


def _limits(rows: SamplingRows, vocabulary: int) -> NDArray[np.int64]:
    """How many tokens top_k leaves."""
    return np.where(rows.top_ks > 0, np.minimum(rows.top_ks, vocabulary), vocabulary)


def _scaled(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Logits, float32, by temperature; those that min_p leaves out are -inf, and nothing after it needs to know."""
    scaled = logits.float() / column(rows.temperatures, logits.device)
    if rows.min_ps.any():
        with np.errstate(divide="ignore"):  # the logarithm of 0, for rows that leave nothing out
            floors = scaled.amax(-1, keepdim=True) + column(np.log(rows.min_ps), logits.device)
        scaled.masked_fill_(scaled < floors, -torch.inf)
    return scaled
