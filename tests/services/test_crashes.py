from services.crashes import Crashes


def test_whoever_worked_for_long_is_back_at_once_and_whoever_keeps_ending_waits_longer_each_time() -> None:
    crashes = Crashes(allowed=4, window_s=60.0)
    assert [crashes.pause_s(now) for now in (100.0, 101.0, 102.0, 103.0)] == [0.0, 0.2, 0.4, 0.8]
    # What lies further back than the window does not count any more.
    assert crashes.pause_s(162.5) == 0.2


def test_one_end_too_many_within_the_window_is_the_last() -> None:
    crashes = Crashes(allowed=2, window_s=10.0)
    assert [crashes.pause_s(now) for now in (0.0, 1.0, 2.0)] == [0.0, 0.2, None]
    assert crashes.count == 3


def test_nobody_waits_longer_than_ten_seconds() -> None:
    crashes = Crashes(allowed=100, window_s=1000.0)
    assert [crashes.pause_s(float(now)) for now in range(20)][-1] == 10.0


def test_who_asks_for_another_try_begins_anew() -> None:
    crashes = Crashes(allowed=1, window_s=10.0)
    crashes.pause_s(0.0)
    crashes.forgive()
    assert crashes.pause_s(1.0) == 0.0
