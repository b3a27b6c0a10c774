"""The short form of `fairlead bench fuzz`; the long one has a million frames for each place."""

import pytest

from ops.bench import fuzz, fuzz_places
from services.scheduler.service import SchedulerService
from services.wire import Stopped


@pytest.mark.parametrize("place", fuzz_places.PLACES)
def test_mutated_frames_do_nothing_but_end_their_own_connection(place: str) -> None:
    found = fuzz.outcome(place, 600, seed=7)
    assert found.strikes == []
    assert found.num_frames == 600
    assert found.num_more_descriptors <= fuzz.MOST_DESCRIPTORS
    assert found.num_closed > 100


def test_a_service_that_believes_a_frame_is_found_out(monkeypatch) -> None:
    received = SchedulerService.received

    def believe(service, stream, message) -> None:
        if isinstance(message, Stopped):
            raise KeyError(message.sequence)
        received(service, stream, message)

    monkeypatch.setattr(SchedulerService, "received", believe)
    (strike,) = fuzz.outcome("scheduler", 500, seed=7).strikes
    assert strike.error.startswith("KeyError(")


def test_a_seed_makes_the_same_frames_again() -> None:
    first, again = (fuzz.outcome("executor", 300, seed=5) for _ in range(2))
    assert (first.num_closed, first.num_frames) == (again.num_closed, again.num_frames)
