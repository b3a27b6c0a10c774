"""Parts of a latency: none negative, together the whole, whatever the clocks of the services say."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.telemetry.keeper.parts import parts_of_one, token_parts
from services.telemetry.stamps import FIRST_PARTS, TOKEN_PARTS

STAMP = st.integers(0, 10**12)


@given(st.lists(st.tuples(STAMP, *[STAMP] * 7), min_size=1, max_size=20))
def test_parts_of_tokens_sum_to_the_latency_and_none_is_negative(rows: list[tuple[int, ...]]) -> None:
    table = np.array(rows, np.int64)
    parts = token_parts(table[:, 0], table[:, 1:])
    assert parts.shape == (len(rows), len(TOKEN_PARTS))
    assert (parts >= 0).all()
    assert (parts.sum(axis=1) == np.maximum(table[:, -1] - table[:, 0], 0)).all()


@given(STAMP, st.lists(STAMP, min_size=7, max_size=7))
def test_parts_of_one_token_are_those_of_many(before: int, edges: list[int]) -> None:
    assert parts_of_one(before, edges) == token_parts(np.array([before]), np.array([edges]))[0].tolist()


@given(st.lists(STAMP, min_size=len(FIRST_PARTS) + 1, max_size=len(FIRST_PARTS) + 1))
def test_parts_of_the_first_token_sum_to_the_time_to_it(edges: list[int]) -> None:
    parts = parts_of_one(edges[0], edges)
    assert min(parts) >= 0
    assert sum(parts) == max(edges[-1] - edges[0], 0)


def test_what_overlaps_with_the_delivery_of_the_token_before_kept_nobody_waiting() -> None:
    #                  ready planned launched computed returned gateway written
    edges = np.array([[100, 110, 120, 220, 230, 240, 250]], np.int64)
    assert token_parts(np.array([150]), edges).tolist() == [[0, 0, 70, 10, 10, 10]]
    assert token_parts(np.array([100]), edges).tolist() == [[10, 10, 100, 10, 10, 10]]


def test_time_before_a_token_could_be_planned_counts_as_waiting() -> None:
    edges = np.array([[100, 110, 120, 220, 230, 240, 250]], np.int64)
    assert token_parts(np.array([40]), edges).tolist() == [[70, 10, 100, 10, 10, 10]]
