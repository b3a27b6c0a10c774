import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from policies.admission.auto_window import HOLDING, SMALLEST_SHARE, AutoWindow
from policies.admission.core import AdmissionCore
from policies.events import Arrived, CapacityChanged, PolicyApplied, SchedulerLost, Started
from policies.simulation.driver import Simulation
from policies.simulation.executor_model import Device, FloorLinear
from policies.simulation.workload import TraceRequest
from tests.policies.admission.worlds import document

POOL = 10_000
EVENT_S = 0.25
Speed = Callable[[int], float]
"""Tokens per second of a window."""


def saturating(knee_tokens: float, peak: float = 800.0) -> Speed:
    """Full speed from the knee on, in proportion below it."""
    return lambda window: peak * min(1.0, window / knee_tokens)


class Service:
    """A window before devices with a backlog that never ends."""

    def __init__(self, noise: float = 0.0, seed: int = 0, most_tokens: int = POOL) -> None:
        self.auto = AutoWindow(POOL)
        self.sizes = [POOL]
        """That the window took, one after the other."""
        self._draw = random.Random(seed)  # noqa: S311  noise of a test
        self._noise = noise
        self._most_tokens = most_tokens
        """That are in flight when requests are counted out before the window is full."""
        self._now, self._speed = 0.0, 1.0

    def run(self, speed: Speed, seconds: float) -> "Service":
        auto = self.auto
        for _ in range(int(seconds / EVENT_S)):
            self._now += EVENT_S
            # Noise lasts for a second or so, as that of real steps does.
            self._speed = 0.8 * self._speed + 0.2 * self._draw.gauss(1.0, 3 * self._noise)
            auto.produced([0] * max(0, round(speed(auto.limit_tokens) * EVENT_S * self._speed)))
            auto.look(self._now, min(auto.limit_tokens, self._most_tokens))
            if auto.limit_tokens != self.sizes[-1]:
                self.sizes.append(auto.limit_tokens)
        return self


@pytest.mark.parametrize("knee", [400, 1500, 4000, 9000])
def test_it_finds_the_smallest_window_that_keeps_the_throughput(knee: int) -> None:
    service = Service().run(saturating(knee), 2400)
    assert service.auto.phase == HOLDING
    assert 0.98 * knee <= service.auto.limit_tokens <= knee / 0.75


@pytest.mark.parametrize("seed", range(4))
def test_noise_costs_it_some_of_the_narrowing_and_none_of_the_throughput(seed: int) -> None:
    service = Service(noise=0.05, seed=seed).run(saturating(3000), 4000)
    assert 0.98 * 3000 <= service.auto.limit_tokens <= 6000
    assert len(service.sizes) < 20, "it goes on wandering"


def test_where_every_token_of_the_window_counts_it_stays_at_the_pool() -> None:
    service = Service().run(saturating(2 * POOL), 2000)
    assert service.auto.limit_tokens == POOL


def test_where_the_number_of_requests_is_what_binds_it_narrows_from_what_they_take() -> None:
    service = Service(most_tokens=100).run(saturating(80), 2000)
    assert 0.98 * 80 <= service.auto.limit_tokens <= 100


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


def test_after_an_hour_of_backlog_it_looks_whether_less_is_enough_by_now() -> None:
    service = Service().run(saturating(6000), 1500)
    assert service.auto.limit_tokens >= 0.98 * 6000
    service.run(saturating(2000), 9000)
    assert service.auto.limit_tokens < 6000


def test_seconds_in_which_nobody_waits_say_nothing() -> None:
    auto = AutoWindow(POOL)
    for second in range(3000):
        auto.produced([0])
        auto.look(float(second), POOL)
        auto.idle()
    assert auto.limit_tokens == POOL


# --- in the core --------------------------------------------------------------------------------------------------

KNEE = Device("above 40 tokens a step takes longer", 500, 16, 1024, FloorLinear(0.1, 0.0, 0.0025, 0.0))


def overloaded(window: str, duration_s: float) -> tuple[float, Simulation]:
    """Output tokens per second of two tenants that ask for more than the device has, and the run."""
    draw = random.Random(0)  # noqa: S311  lengths of a test
    trace = [
        TraceRequest(number / 8, draw.choice("ab"), "free", draw.randint(20, 80), draw.randint(20, 80))
        for number in range(int(8 * duration_s))
    ]
    vllm = (Path(__file__).resolve().parents[3] / "policies" / "vllm.yaml").read_text()
    asked = f"fairness: {{window_tokens: {window}}}\nqueue: {{ttl_s: 1e6, per_tenant_max: 100000, total_max: 100000}}"
    simulation = Simulation(re.sub(r"(?m)^fairness:.*$", asked, vllm).encode(), trace, KNEE, duration_s=duration_s)
    outcome = simulation.run()
    assert outcome.max_gap_ratio <= 1.0
    return sum(served.output_tokens for served in outcome.served) / outcome.simulated_s, simulation


def test_over_an_overload_it_keeps_98_percent_of_the_open_windows_throughput_with_less_in_flight() -> None:
    open_tokens_per_s, at_the_pool = overloaded("{pools: 1}", 1300.0)
    tokens_per_s, narrowed = overloaded("auto", 1300.0)
    assert narrowed.admission.auto_window is not None
    assert narrowed.admission.auto_window.phase == HOLDING
    assert narrowed.admission.window.limit_tokens < 0.8 * at_the_pool.admission.window.limit_tokens
    assert tokens_per_s >= 0.98 * open_tokens_per_s


def test_the_core_starts_at_the_pool_and_starts_anew_when_the_pool_changes() -> None:
    core = AdmissionCore()
    core.handle(Started(0.0), 0.0)
    core.handle(PolicyApplied(1, document(kind="vtc", window_tokens="auto")), 0.0)
    assert core.auto_window is None
    core.handle(CapacityChanged(1, 1000, 500), 0.0)
    first = core.auto_window
    assert core.window.limit_tokens == 990
    core.handle(CapacityChanged(1, 1000, 500), 1.0)
    assert core.auto_window is first
    core.handle(CapacityChanged(2, 2000, 500), 2.0)
    assert core.auto_window is not first
    assert core.window.limit_tokens == 1980
    core.handle(PolicyApplied(2, document(kind="fcfs", window_tokens="auto")), 3.0)
    assert core.auto_window is None


def test_what_was_learnt_of_a_pool_waits_for_executors_that_are_away() -> None:
    core = AdmissionCore()
    core.handle(Started(0.0), 0.0)
    core.handle(PolicyApplied(1, document(kind="vtc", window_tokens="auto")), 0.0)
    core.handle(CapacityChanged(1, 1000, 500), 0.0)
    learnt = core.auto_window
    assert learnt is not None
    learnt.limit_tokens = 700
    core.handle(SchedulerLost(), 2.0)
    for at_s in range(3, 60):
        core.handle(Arrived(at_s, "a", "free", 10, 10), float(at_s))
    assert core.queue.waiting
    core.handle(CapacityChanged(1, 1000, 500), 60.0)
    assert core.auto_window is learnt
    assert core.window.limit_tokens == 700
    assert learnt._mean.num_batches == 0
