"""Decodes come in few shapes, and what pads them touches the scratch block alone."""

import numpy as np
import pytest

from engine.attention.interface import Rows


@pytest.mark.parametrize(("num_rows", "shape"), [(1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_rows_are_padded_to_a_power_of_two(num_rows: int, shape: int) -> None:
    from engine.attention.steady import padded_rows

    assert padded_rows(num_rows) == shape


@pytest.mark.parametrize(
    ("num_tokens", "max_blocks", "blocks"),
    [(1, 1000, 16), (1024, 1000, 16), (1025, 1000, 32), (5000, 1000, 128), (1, 3, 3), (5000, 90, 90)],
)
def test_a_row_is_padded_to_a_power_of_two_of_tokens_but_not_beyond_the_pool(
    num_tokens: int, max_blocks: int, blocks: int
) -> None:
    from engine.attention.steady import padded_blocks

    assert padded_blocks(num_tokens, 64, max_blocks) == blocks


def test_padding_rows_see_one_token_of_the_scratch_block() -> None:
    from engine.attention.steady import padded

    rows = Rows(2, np.array([1, 1, 30]), np.array([5, 70, 99]), np.array([[3, 0], [4, 9], [5, 6]]))
    contexts, tables = padded(rows, 4, 3)
    assert contexts.tolist() == [5, 70, 1, 1]
    assert tables.tolist() == [[3, 0, 0], [4, 9, 0], [0, 0, 0], [0, 0, 0]]
    assert contexts.dtype == tables.dtype == np.int32


def test_blocks_beyond_the_shape_are_those_of_chunks_alone() -> None:
    from engine.attention.steady import padded

    rows = Rows(1, np.array([1, 30]), np.array([5, 99]), np.array([[3, 0, 0], [5, 6, 7]]))
    _, tables = padded(rows, 1, 2)
    assert tables.tolist() == [[3, 0]]
