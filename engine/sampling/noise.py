"""Random numbers of a row: a hash of its seed, its output position and the token, and of nothing else.

So tokens depend neither on batch mates nor on how a prompt was chunked or how often it was preempted.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TOKEN_FACTOR = -0x61C88647
"""The golden ratio in 32 bits, as a signed number: neighbouring tokens get far keys."""
ROUNDS = ((16, -0x7A143595), (13, -0x3D4D51CB))
"""Shifts and factors of MurmurHash3's finalizer, as signed numbers: processors multiply vectors of 32 bits."""


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
