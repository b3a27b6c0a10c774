"""The shapes that decodes come in.

A kernel is compiled, and a graph captured, for one shape: rows and blocks are padded to few sizes, so that there are
few of both. Padding rows see one token of the scratch block and nobody reads what they compute.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.attention.interface import Rows

LEAST_TOKENS = 1024
"""Contexts up to this share one width: narrower ones would save little and be compiled and captured as well."""
NO_ROWS = Rows(0, np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 1), np.int64))


def padded_rows(num_rows: int) -> int:
    """A power of two."""
    return 1 << (num_rows - 1).bit_length()


def padded_blocks(num_tokens: int, block_tokens: int, max_blocks: int) -> int:
    """Blocks of a row whose context is `num_tokens`: a power of two of tokens, at most `max_blocks`."""
    width = max(LEAST_TOKENS, 1 << (num_tokens - 1).bit_length())
    return min(-(-width // block_tokens), max_blocks)


def padded(rows: Rows, num_rows: int, num_blocks: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Contexts [num_rows] and block tables [num_rows, num_blocks] of the decodes among `rows`, padded."""
    count, width = rows.num_decodes, min(num_blocks, rows.tables.shape[1])
    contexts = np.ones(num_rows, np.int32)
    contexts[:count] = rows.contexts[:count]
    tables = np.zeros((num_rows, num_blocks), np.int32)
    tables[:count, :width] = rows.tables[:count, :width]
    return contexts, tables


def starts(lengths: NDArray[Any]) -> NDArray[np.int32]:
    """Where each of some pieces begins, and where the last ends, int32 [pieces + 1]."""
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
