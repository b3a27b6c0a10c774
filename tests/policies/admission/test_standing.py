"""What tells a load that lasts from a burst."""

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.admission.standing import Standing

AFTER_S = 10.0


def late(times_s: list[float]) -> Standing:
    standing = Standing(AFTER_S)
    for at_s in times_s:
        standing.late(at_s)
    return standing


def test_lateness_counts_once_it_has_been_the_rule_for_so_long() -> None:
    assert Standing(AFTER_S).begins_s == inf
    assert late([1.0, 2.0, 3.0]).begins_s == 1.0 + AFTER_S


def test_without_a_time_the_first_late_request_counts() -> None:
    standing = Standing(0.0)
    standing.timely(1.0)
    assert standing.begins_s == -inf


def test_one_in_time_of_four_is_a_break() -> None:
    standing = late([1.0, 1.0, 1.0, 1.0])
    standing.timely(1.0)
    assert standing.begins_s == 1.0 + AFTER_S
    standing.timely(1.0)
    assert standing.begins_s == inf


def test_what_was_long_ago_counts_for_little() -> None:
    standing = Standing(AFTER_S)
    for _ in range(100):
        standing.timely(0.0)
    for _ in range(5):
        standing.late(5 * AFTER_S)
    assert standing.begins_s == 6 * AFTER_S


def test_a_queue_that_is_gone_is_a_break_whatever_was_before() -> None:
    standing = late([1.0, 2.0, 30.0])
    standing.gone()
    assert standing.begins_s == inf
    standing.late(31.0)
    assert standing.begins_s == 31.0 + AFTER_S


def test_a_load_that_lasted_is_over_when_hardly_anybody_is_late() -> None:
    standing = late([0.0, AFTER_S])
    for _ in range(25):
        standing.timely(AFTER_S)
    assert standing.begins_s == AFTER_S
    standing.timely(AFTER_S)
    assert standing.begins_s == inf


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=60), st.floats(0.1, 20))
@settings(max_examples=100, deadline=None)
def test_it_never_begins_sooner_than_so_long_after_a_late_request(
    verdicts: list[tuple[float, bool]], after_s: float
) -> None:
    standing, now, num_late, num_timely, majority_s = Standing(after_s), 0.0, 0.0, 0.0, None
    for gap_s, is_late in verdicts:
        now += gap_s
        (standing.late if is_late else standing.timely)(now)
        num_late, num_timely = num_late + is_late, num_timely + (not is_late)
        if standing.begins_s == inf:
            majority_s = None
            continue
        if majority_s is None:
            assert is_late
            majority_s = now
        assert standing.begins_s == pytest.approx(majority_s + after_s)
    assert num_late or standing.begins_s == inf
