"""Admission and a scheduler that it loses and finds again: nothing is charged twice, and nothing is forgotten."""

import numpy as np
import pytest

from policies.events import HeldAtScheduler, RequestFinished, SchedulerHolds, SchedulerLost, TokensProduced
from services.admission import scheduler_side
from services.admission.scheduler_side import SchedulerSide
from services.admission.store import Kept
from services.transport import Identity
from services.wire import Capacity, EndsKept, Holds, RequestEnded, Usage

pytestmark = pytest.mark.asyncio
ASKS = Capacity(2, 1000, 500, counts_ends=True)
HELD = HeldAtScheduler(1, "acme", "default", "", "paid", 1.0, 5, 16, 1, 3)


class Stream:
    def __init__(self, epoch: int) -> None:
        self.peer = Identity("scheduler", epoch=epoch)
        self.sent: list = []

    def send(self, message) -> None:
        self.sent.append(message)


class Side(SchedulerSide):
    """A side whose core, store and clock are the test's."""

    def __init__(self) -> None:
        self.events: list = []
        self.ends: list[tuple[int, int]] = []
        self.capacities: list[int] = []
        super().__init__(
            self.events.append,
            lambda epoch, number: self.ends.append((epoch, number)),
            lambda capacity: self.capacities.append(capacity.num_executors),
            lease_s=1000.0,
            resume_s=0.0,
        )

    def connect(self, epoch: int, *held: HeldAtScheduler) -> Stream:
        stream = Stream(epoch)
        self.opened(stream)
        for message in (ASKS, Holds(list(held)), ASKS):
            self.received(stream, message)
        return stream


@pytest.fixture
async def side():
    made = Side()
    yield made
    made.close()


async def test_nothing_is_released_before_it_is_known_what_the_scheduler_holds(side) -> None:
    stream = Stream(8)
    side.opened(stream)
    side.received(stream, ASKS)
    assert (side.capacities, stream.sent) == ([], [EndsKept(0)])
    side.received(stream, Holds([HELD]))
    side.received(stream, ASKS)
    assert side.capacities == [2]
    assert side.events == [SchedulerLost(), SchedulerHolds((HELD,))]


async def test_what_is_told_before_both_agree_is_not_counted_twice(side) -> None:
    stream = Stream(8)
    side.opened(stream)
    side.events.clear()
    side.received(stream, ASKS)
    side.received(stream, Usage(np.array([1], np.int64).tobytes()))
    side.received(stream, RequestEnded(1, "finished", 3, number=1))
    assert (side.events, side.ends) == ([], [(8, 0)])


async def test_a_stream_that_breaks_settles_nothing_and_the_same_scheduler_goes_on(side) -> None:
    stream = side.connect(8)
    side.received(stream, RequestEnded(7, "finished", 3, number=1))
    side.kept(8, 1)
    side.events.clear()
    side.closed()
    assert (side.events, side.capacities[-1]) == ([], 0)
    again = side.connect(8, HELD)
    assert again.sent == [EndsKept(1)]
    assert side.events == [SchedulerHolds((HELD,))]


async def test_an_end_that_is_settled_and_not_kept_is_not_taken_up_again_after_a_break(side) -> None:
    stream = side.connect(8, HELD)
    side.received(stream, RequestEnded(HELD.request, "finished", 3, number=1))
    side.closed()
    side.events.clear()
    side.connect(8, HELD)
    assert side.events == [SchedulerHolds(())]
    side.kept(8, 1)
    side.closed()
    side.connect(8, HELD)
    assert side.events[-1] == SchedulerHolds((HELD,))


async def test_a_new_start_of_the_scheduler_ends_what_the_one_before_had(side) -> None:
    stream = side.connect(8)
    side.received(stream, RequestEnded(7, "finished", 3, number=1))
    side.kept(8, 1)
    side.closed()
    side.events.clear()
    again = side.connect(9)
    assert again.sent == [EndsKept(0)]
    assert side.events == [SchedulerLost(), SchedulerHolds(())]
    side.received(again, RequestEnded(8, "finished", 3, number=1))
    assert side.ends[-1] == (9, 1)


async def test_a_process_that_was_killed_goes_on_with_the_ends_that_it_kept(side) -> None:
    side.begin(Kept({}, 8, 5))
    assert side.connect(8).sent == [EndsKept(5)]
    assert side.events == [SchedulerHolds(())]


async def test_an_end_that_is_told_again_is_settled_once(side) -> None:
    stream = side.connect(8)
    ended = RequestEnded(7, "finished", 3, number=1)
    side.received(stream, ended)
    side.received(stream, ended)
    assert side.ends == [(8, 0), (8, 1)]
    assert side.events[-2:] == [RequestFinished(7, 3, "finished")] * 2  # the core ignores what it does not know


async def test_an_end_is_acknowledged_when_the_store_has_it_and_to_the_scheduler_that_told(side) -> None:
    stream = side.connect(8)
    stream.sent.clear()
    side.received(stream, RequestEnded(7, "finished", 3, number=1))
    assert stream.sent == []
    side.kept(7, 1)
    assert stream.sent == []
    side.kept(8, 1)
    side.kept(8, 1)
    assert stream.sent == [EndsKept(1)]


async def test_a_scheduler_that_stays_away_has_its_requests_settled_once_and_for_all(side) -> None:
    side.connect(8, HELD)
    side.events.clear()
    side.closed()
    side._expire()
    assert side.events == [SchedulerLost()]
    side.settled_as_lost(HELD.request)
    other = HeldAtScheduler(2, "acme", "default", "", "paid", 1.0, 5, 16, 1, 3)
    side.connect(8, HELD, other)
    assert side.events[1:] == [SchedulerHolds((other,))]


async def test_what_was_settled_without_its_end_is_forgotten_when_that_comes_or_never_can(side) -> None:
    side.connect(8, HELD)
    side.closed()
    for request in (HELD.request, 2):
        side.settled_as_lost(request)
    stream = side.connect(8, HELD)
    assert list(side._expired) == [HELD.request]
    side.received(stream, RequestEnded(HELD.request, "finished", 3, number=1))
    assert not side._expired


async def test_no_more_ends_are_remembered_for_a_store_that_fails_than_can_be_told_again(side, monkeypatch) -> None:
    monkeypatch.setattr(scheduler_side, "MOST_UNKEPT", 2)
    stream = side.connect(8)
    for number in (1, 2, 3):
        side.received(stream, RequestEnded(10 + number, "finished", 3, number=number))
    assert side._unkept == {2: (12, 0), 3: (13, 0)}


async def test_a_scheduler_of_the_version_before_is_served_as_it_was(side) -> None:
    stream = Stream(8)
    side.opened(stream)
    side.received(stream, Capacity(1, 1000, 500))
    side.received(stream, Usage(np.array([4], np.int64).tobytes(), [(4, 2)]))
    side.received(stream, RequestEnded(4, "finished", 1))
    assert stream.sent == []
    assert side.capacities == [1]
    assert side.events[-2:] == [TokensProduced([4], [(4, 2)]), RequestFinished(4, 1, "finished")]
    assert side.ends == [(8, 0)]
