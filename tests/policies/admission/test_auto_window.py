import random
from collections.abc import Callable

import pytest

from policies.admission.auto_window import HOLDING, SMALLEST_SHARE, AutoWindow

POOL = 10_000
EVENT_S = 0.25
Device = Callable[[int], float]
"""Tokens per second of a window."""


def saturating(knee_tokens: float, peak: float = 800.0) -> Device:
    """Full speed from the knee on, in proportion below it."""
    return lambda window: peak * min(1.0, window / knee_tokens)


class Service:
    """A window before devices with a backlog that never ends."""

    def __init__(self, noise: float = 0.0, seed: int = 0) -> None:
        self.auto = AutoWindow(POOL)
        self.sizes = [POOL]
        """That the window took, one after the other."""
        self._draw = random.Random(seed)  # noqa: S311  noise of a test
        self._noise = noise
        self._now, self._speed = 0.0, 1.0

    def run(self, device: Device, seconds: float) -> "Service":
        auto = self.auto
        for _ in range(int(seconds / EVENT_S)):
            self._now += EVENT_S
            # Noise lasts for a second or so, as that of real steps does.
            self._speed = 0.8 * self._speed + 0.2 * self._draw.gauss(1.0, 3 * self._noise)
            auto.served(max(0, round(device(auto.limit_tokens) * EVENT_S * self._speed)), self._now)
            if auto.limit_tokens != self.sizes[-1]:
                self.sizes.append(auto.limit_tokens)
        return self


@pytest.mark.parametrize("knee", [400, 1500, 4000, 9000])
def test_it_finds_the_smallest_window_that_keeps_the_throughput(knee: int) -> None:
    service = Service().run(saturating(knee), 2400)
    assert service.auto.phase == HOLDING
    assert 0.98 * knee <= service.auto.limit_tokens <= knee / 0.75


@pytest.mark.parametrize("seed", range(6))
def test_noise_costs_it_some_of_the_narrowing_and_none_of_the_throughput(seed: int) -> None:
    service = Service(noise=0.05, seed=seed).run(saturating(3000), 4000)
    assert 0.98 * 3000 <= service.auto.limit_tokens <= 6000
    assert len(service.sizes) < 20, "it goes on wandering"


def test_where_every_token_of_the_window_counts_it_stays_at_the_pool() -> None:
    service = Service().run(saturating(2 * POOL), 2000)
    assert service.auto.limit_tokens == POOL


def test_it_never_goes_below_its_smallest_window() -> None:
    service = Service().run(saturating(1), 6000)
    assert min(service.sizes) >= SMALLEST_SHARE * POOL


def test_a_change_of_traffic_that_needs_more_room_widens_it_again() -> None:
    service = Service().run(saturating(2000), 2400)
    assert service.auto.limit_tokens < 3000
    service.run(saturating(6000), 2400)
    assert service.auto.limit_tokens >= 0.98 * 6000


def test_slower_traffic_at_the_same_knee_makes_it_no_wider() -> None:
    service = Service().run(saturating(2000), 2400)
    service.run(saturating(2000, peak=500.0), 2400)
    assert service.auto.limit_tokens < 3000


def test_after_half_an_hour_of_backlog_it_looks_whether_less_is_enough_by_now() -> None:
    service = Service().run(saturating(6000), 1500)
    assert service.auto.limit_tokens >= 0.98 * 6000
    service.run(saturating(2000), 9000)
    assert service.auto.limit_tokens < 6000


def test_seconds_in_which_nobody_waits_say_nothing() -> None:
    auto = AutoWindow(POOL)
    for second in range(3000):
        auto.served(1, float(second))
        auto.idle()
    assert auto.limit_tokens == POOL
