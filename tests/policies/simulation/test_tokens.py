"""Counts and times of tokens, as columns."""

import numpy as np
import pytest

from policies.simulation.tokens import TokenTimes


def test_the_first_token_of_a_request_makes_no_gap_and_is_told() -> None:
    tokens = TokenTimes(num_requests=3)
    assert tokens.add(np.array([1, 3]), 1.0).tolist() == [1, 3]
    assert tokens.add(np.array([3]), 1.5).tolist() == []
    assert tokens.add(np.array([3, 1]), 2.0).tolist() == []
    gaps = tokens.gaps()
    assert gaps.requests.tolist() == [3, 3, 1]
    assert gaps.seconds.tolist() == pytest.approx([0.5, 0.5, 1.0])
    assert tokens.num_tokens.tolist() == [0, 2, 0, 3]


def test_gaps_can_be_told_from_a_step_on() -> None:
    tokens = TokenTimes(num_requests=1)
    for now in (1.0, 2.0, 4.0):
        tokens.add(np.array([1]), now)
    assert tokens.num_steps == 3
    assert tokens.gaps(since_step=2).seconds.tolist() == [2.0]
    assert not len(tokens.gaps(since_step=3).seconds)


def test_without_a_token_there_are_no_gaps() -> None:
    assert not len(TokenTimes(num_requests=1).gaps().requests)
