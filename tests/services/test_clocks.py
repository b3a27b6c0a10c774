"""The difference of two clocks is found within what is said of its uncertainty, whatever the way there and back."""

from hypothesis import given
from hypothesis import strategies as st

from services.clocks import ClockDifference

WAY = st.integers(0, 5_000_000)


@given(st.integers(-(10**12), 10**12), st.lists(st.tuples(WAY, WAY, WAY), min_size=1, max_size=50))
def test_the_difference_is_within_its_uncertainty(ahead_ns: int, exchanges: list[tuple[int, int, int]]) -> None:
    clock = ClockDifference()
    now = 10**13
    for there, busy, back in exchanges:
        now += 10**8
        received = now + there + ahead_ns
        clock.exchanged(now, received, received + busy, now + there + busy + back)
    assert abs(clock.ahead_ns - ahead_ns) <= 2 * clock.uncertainty_ns
    if clock.ahead_ns:
        assert abs(clock.ahead_ns - ahead_ns) <= clock.uncertainty_ns


def test_the_shortest_way_counts() -> None:
    clock = ClockDifference()
    clock.exchanged(0, 5_000_000 + 50_000_000, 55_000_000, 5_100_000)
    slow = clock.uncertainty_ns
    clock.exchanged(10**9, 10**9 + 50_010_000, 10**9 + 50_010_000, 10**9 + 20_000)
    assert clock.uncertainty_ns < slow
    assert clock.ahead_ns == 50_000_000
    assert clock.ours(10**9 + 50_000_000) == 10**9


def test_clocks_that_cannot_be_told_apart_are_taken_for_one() -> None:
    clock = ClockDifference()
    clock.exchanged(0, 60_000, 60_000, 100_000)
    assert clock.ahead_ns == 0
    assert clock.ours(7) == 7


def test_a_clock_that_was_set_in_between_says_nothing() -> None:
    clock = ClockDifference()
    clock.exchanged(1000, 0, 5000, 2000)
    assert (clock.ahead_ns, clock.uncertainty_ns) == (0, 0)
