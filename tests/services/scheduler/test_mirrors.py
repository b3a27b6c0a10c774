"""An operator is given a copy of the core and everything it is told, and costs nothing once gone."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from policies.event_log import Record, read_records
from policies.events import ExecutorJoined, Released, StepEnded
from policies.scheduling.core import SchedulerCore
from policies.scheduling.shadow import Shadow
from services.pump import Pump
from services.scheduler import mirrors as mirrors_module
from services.scheduler.mirrors import OPERATOR, Mirrors
from services.transport import Identity, InprocStream, inproc_pair
from services.wire_operator import MirrorEnded, MirrorRecords, MirrorState

POLICY = (Path(__file__).resolve().parents[3] / "policies" / "slai.yaml").read_bytes()
JOINED = ExecutorJoined(0, num_blocks=64, block_tokens=16, max_sequence_tokens=512)


class Place:
    """A core at work, and its mirrors."""

    def __init__(self, recorder, max_frame_bytes: int = 2**20) -> None:
        self.core = SchedulerCore()
        self.pump = Pump(self.core, lambda command: None)
        self.mirrors = Mirrors(self.core, self.pump, max_frame_bytes)
        self.pump.apply(1, POLICY)
        self.pump.handle(JOINED)
        self.recorder = recorder
        self.steps = 0

    def watch(self, duration_s: float = 60.0) -> tuple[InprocStream, object]:
        theirs = self.recorder()
        ours, _ = inproc_pair(self.recorder(), theirs, identity_b=Identity(OPERATOR, "1"))
        self.mirrors.begin(ours, duration_s)
        return ours, theirs

    def release(self, request: int) -> None:
        self.pump.handle(Released(request, "free", 20, 4))

    def step(self) -> None:
        self.steps += 1
        self.pump.handle(StepEnded(0, self.steps, 0.01))


def told(operator) -> list[Record]:
    return list(read_records(b"".join(each.records for each in operator.messages if isinstance(each, MirrorRecords))))


@pytest.fixture
async def place(recorder, monkeypatch) -> AsyncIterator[Place]:
    monkeypatch.setattr(mirrors_module, "SEND_S", 0.001)
    made = Place(recorder)
    yield made
    made.mirrors.close()
    made.pump.close()


async def test_the_copy_goes_on_as_the_core_does(place) -> None:
    place.release(1)
    _, operator = place.watch()
    shadow = Shadow((await operator.message(MirrorState)).core, POLICY)
    place.step()
    place.release(2)
    place.step()
    await operator.until(lambda: len(told(operator)) == 3)
    for record in told(operator):
        shadow.follow(record.event, record.now, record.commands, compare=True)
    assert shadow.tally.num_compared == shadow.tally.num_agreed > 0


async def test_a_second_operator_gets_what_came_after_its_own_copy(place) -> None:
    _, first = place.watch()
    place.release(1)
    _, second = place.watch()
    place.step()
    await second.message(MirrorRecords)
    await first.message(MirrorRecords, 2)
    assert [type(record.event) for record in told(first)] == [Released, StepEnded]
    assert [type(record.event) for record in told(second)] == [StepEnded]


async def test_it_ends_when_the_time_is_up_and_nothing_is_observed_any_more(place) -> None:
    _, operator = place.watch(0.002)
    assert place.pump.observers
    assert (await operator.message(MirrorEnded)).error == ""
    assert not place.pump.observers


async def test_an_operator_who_does_not_keep_up_is_told_so(place) -> None:
    ours, operator = place.watch()
    place.mirrors.end(ours, "too slow")
    assert (await operator.message(MirrorEnded)).error == "too slow"
    place.mirrors.end(ours, "again")
    assert not place.pump.observers


async def test_a_state_that_no_frame_holds_is_refused_with_the_limit(recorder) -> None:
    place = Place(recorder, max_frame_bytes=2000)
    _, operator = place.watch()
    assert "streams.max_frame_bytes is 2000" in (await operator.message(MirrorEnded)).error
    assert not place.pump.observers
    place.pump.close()
