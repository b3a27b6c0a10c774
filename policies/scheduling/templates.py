"""Constant arrays that plans and results share; read-only, so that nobody changes another's plan.

Owns nothing that decides.
"""

from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from policies.commands import BoolArray, Int32Array

SHORTEST = 1024

Scalar = TypeVar("Scalar", bound=np.generic)


def ones(count: int) -> Int32Array:
    """`count` times 1, int32."""
    return _ones(_size(count))[:count]


def zeros(count: int) -> Int32Array:
    """`count` times 0, int32."""
    return _zeros(_size(count))[:count]


def trues(count: int) -> BoolArray:
    """`count` times True."""
    return _trues(_size(count))[:count]


def rows(count: int) -> Int32Array:
    """0 .. count - 1, int32."""
    return _rows(_size(count))[:count]


def stages(index: int, count: int) -> NDArray[np.int8]:
    """`count` times a stage's index, int8; index 0 is also "nothing finished"."""
    return _stages(index, _size(count))[:count]


def _size(count: int) -> int:
    return SHORTEST if count <= SHORTEST else 1 << count.bit_length()


@cache
def _ones(size: int) -> Int32Array:
    return _frozen(np.ones(size, np.int32))


@cache
def _zeros(size: int) -> Int32Array:
    return _frozen(np.zeros(size, np.int32))


@cache
def _trues(size: int) -> BoolArray:
    return _frozen(np.ones(size, np.bool_))


@cache
def _rows(size: int) -> Int32Array:
    return _frozen(np.arange(size, dtype=np.int32))


@cache
def _stages(index: int, size: int) -> NDArray[np.int8]:
    return _frozen(np.full(size, index, np.int8))


def _frozen(array: NDArray[Scalar]) -> NDArray[Scalar]:
    array.flags.writeable = False
    return array
