"""Constant arrays that plans and results share; read-only, so that nobody changes another's plan.

Owns nothing that decides.
"""

from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from policies.commands import BoolArray, Int32Array

Scalar = TypeVar("Scalar", bound=np.generic)

REMEMBERED = 1024
"""Counts for which each array is kept: a running system uses a few."""


@lru_cache(REMEMBERED)
def ones(count: int) -> Int32Array:
    """`count` times 1, int32."""
    return _frozen(np.ones(count, np.int32))


@lru_cache(REMEMBERED)
def zeros(count: int) -> Int32Array:
    """`count` times 0, int32."""
    return _frozen(np.zeros(count, np.int32))


@lru_cache(REMEMBERED)
def trues(count: int) -> BoolArray:
    """`count` times True."""
    return _frozen(np.ones(count, np.bool_))


@lru_cache(REMEMBERED)
def rows(count: int) -> Int32Array:
    """0 .. count - 1, int32."""
    return _frozen(np.arange(count, dtype=np.int32))


@lru_cache(REMEMBERED)
def stages(index: int, count: int) -> NDArray[np.int8]:
    """`count` times a stage's index, int8."""
    return _frozen(np.full(count, index, np.int8))


@lru_cache(REMEMBERED)
def no_finish(count: int) -> NDArray[np.int8]:
    """`count` times "goes on", int8."""
    return _frozen(np.zeros(count, np.int8))


def _frozen(array: NDArray[Scalar]) -> NDArray[Scalar]:
    array.flags.writeable = False
    return array
