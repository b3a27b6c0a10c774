"""Future KV by checkpoints is what a step-by-step simulation finds (prediction specification, T1)."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.scheduling.future import Future

MEMBERS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 30), st.integers(0, 3)), max_size=12)
"""Tokens in this step, steps still to run, blocks shared with others."""


def simulated_peak(members, block_tokens):
    steps = max((steps for _, steps, _ in members), default=0)
    return max(
        (
            sum(-(-(tokens + step) // block_tokens) - shared for tokens, left, shared in members if left > step)
            for step in range(steps)
        ),
        default=0,
    )


def future_of(members, block_tokens, used=0):
    columns = np.array(members, np.int64).reshape(-1, 3).T
    return Future(columns[0], columns[1], shared=columns[2], block_tokens=block_tokens, used=used)


def with_possible_shares(members, block_tokens):
    return [(tokens, steps, min(shared, tokens // block_tokens)) for tokens, steps, shared in members]


@settings(max_examples=500, deadline=None, derandomize=True)
@given(members=MEMBERS, candidates=MEMBERS, block_tokens=st.sampled_from([1, 2, 3, 4, 16]), limit=st.integers(1, 400))
def test_whoever_is_admitted_fits_in_every_step_and_nobody_else_is(members, candidates, block_tokens, limit):
    members = with_possible_shares(members, block_tokens)
    future = future_of(members, block_tokens)
    assert future.peak() == simulated_peak(members, block_tokens)
    for tokens, steps, shared in with_possible_shares(candidates, block_tokens):
        fitted = simulated_peak(members, block_tokens) <= limit
        members.append((tokens, steps, shared))
        fits = simulated_peak(members, block_tokens) <= limit
        if fitted:
            assert future.admits(tokens, steps, limit, shared=shared) == fits
        elif future.admits(tokens, steps, limit, shared=shared):
            # It is gone before the others come past the limit.
            assert simulated_peak([(t, min(s, steps), h) for t, s, h in members], block_tokens) <= limit
        future.add(tokens, steps, shared=shared)
        assert future.peak() == simulated_peak(members, block_tokens)


def test_a_candidate_fits_to_the_last_token():
    # In step 5 the first holds 14 tokens, the second 7 and the candidate 8.
    future = future_of([(10, 5, 0), (3, 9, 0)], 1)
    assert future.admits(4, 6, 29)
    assert not future.admits(4, 6, 28)


def test_blocks_that_no_member_holds_are_taken_to_stay():
    assert future_of([(8, 2, 0)], 4, used=5).peak() == 3 + (5 - 2)
    assert future_of([(8, 2, 0)], 4, used=1).peak() == 3
