"""How fast prompts start, and what shorter ones leave of it."""

import pytest

from policies.admission.speed import FLOW_S, GOES_ON, StartingSpeed, length_of

SHORT, LONG = length_of(100), length_of(1000)


def steady(seconds: int, cost: float) -> StartingSpeed:
    """Short prompts of that cost start every second, and there is always something to start."""
    speed = StartingSpeed()
    for second in range(1, seconds + 1):
        speed.busy(1.0)
        speed.started(SHORT, cost)
        speed.sample(float(second))
    return speed


def test_what_overtakes_takes_of_the_speed_and_only_from_longer_prompts() -> None:
    speed = steady(30, 100.0)
    assert speed.left_per_s(SHORT) == speed.per_s == 100.0
    assert speed.left_per_s(LONG) == pytest.approx(100.0 * (1 - GOES_ON), rel=0.01)


def test_what_started_long_ago_overtakes_nobody() -> None:
    speed = steady(30, 100.0)
    speed.sample(30.0 + 10 * FLOW_S)
    assert speed.left_per_s(LONG) == pytest.approx(100.0, rel=0.001)


def test_time_without_work_makes_nothing_slow_but_lets_little_overtake() -> None:
    speed = StartingSpeed()
    for second in range(10, 310, 10):
        speed.busy(1.0)
        speed.started(SHORT, 100.0)
        speed.sample(float(second))
    assert speed.per_s == 100.0
    assert speed.left_per_s(LONG) == pytest.approx(100.0 - GOES_ON * 10.0, rel=0.01)


def test_something_is_left_however_much_overtakes() -> None:
    speed = steady(30, 100.0)
    speed.busy(10.0)
    speed.sample(30.5)
    assert speed.left_per_s(LONG) > 0


def test_an_eighth_of_an_octave_is_a_length_of_its_own() -> None:
    assert [length_of(tokens) for tokens in (0, 1, 15)] == [0, 1, 15]
    assert length_of(1024) == length_of(1151) < length_of(1152)
    assert length_of(2**40) == length_of(2**60)
