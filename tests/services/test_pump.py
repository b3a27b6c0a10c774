import asyncio
import time
from pathlib import Path

import pytest

from policies.commands import Command, Settle, WakeAt
from policies.event_log import read_records
from policies.events import CancelRequested, Event, PolicyApplied, Started, Woke
from services import pump as pump_module
from services.pump import EventLog, Pump, open_event_log
from services.settings import Deployment
from services.troubles import Troubles


def done(request: int) -> Settle:
    return Settle(request, "t", 1, 1, "finished")


class Scripted:
    """A core that answers each event with what the test says."""

    def __init__(self) -> None:
        self.heard: list[Event] = []
        self.times: list[float] = []
        self.answers: dict[type[Event], list[Command]] = {}
        self.num_checks = 0
        self.woke = asyncio.Event()
        self.checked = asyncio.Event()

    def handle(self, event: Event, now: float) -> list[Command]:
        self.heard.append(event)
        self.times.append(now)
        if isinstance(event, Woke):
            self.woke.set()
        return self.answers.get(type(event), [])

    def check(self) -> None:
        self.num_checks += 1
        self.checked.set()


@pytest.fixture
async def core() -> Scripted:
    return Scripted()


async def test_a_core_hears_nothing_before_its_first_policy(core) -> None:
    pump = Pump(core, lambda command: None)
    pump.handle(CancelRequested(1))
    assert core.heard == []
    pump.apply(1, b"document")
    assert [type(event) for event in core.heard] == [Started, PolicyApplied, CancelRequested]
    assert abs(core.heard[0].wall_s - time.time()) < 60
    pump.close()


async def test_an_event_that_arises_while_commands_are_performed_waits_for_its_turn(core) -> None:
    story: list[object] = []

    def perform(command: Settle) -> None:
        if command.request == 1:
            pump.handle(Woke())
        story.append((command.request, len(core.heard)))

    pump = Pump(core, perform)
    pump.apply(1, b"")
    core.answers = {CancelRequested: [done(1), done(2)], Woke: [done(3)]}
    pump.handle(CancelRequested(1))
    assert story == [(1, 3), (2, 3), (3, 4)]
    pump.close()


async def test_a_wake_up_never_comes_early_and_a_later_one_replaces_it(core) -> None:
    pump = Pump(core, lambda command: None)
    at_s = time.monotonic() + 0.0104
    core.answers = {CancelRequested: [WakeAt(time.monotonic() + 1000)]}
    pump.apply(1, b"")
    pump.handle(CancelRequested(1))
    core.answers = {CancelRequested: [WakeAt(at_s)]}
    pump.handle(CancelRequested(1))
    await asyncio.wait_for(core.woke.wait(), 5)
    assert core.times[-1] >= at_s
    pump.close()


async def test_invariants_are_checked_after_every_event_when_asked_for(core) -> None:
    pump = Pump(core, lambda command: None, check=True)
    pump.apply(1, b"")
    pump.handle(Woke())
    assert core.num_checks == 3
    pump.close()


async def test_an_idle_core_has_its_invariants_checked_once(core, monkeypatch) -> None:
    monkeypatch.setattr(pump_module, "IDLE_CHECK_S", 0.005)
    pump = Pump(core, lambda command: None)
    pump.apply(1, b"")
    await asyncio.wait_for(core.checked.wait(), 5)
    core.checked.clear()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(core.checked.wait(), 0.03)
    pump.handle(Woke())
    await asyncio.wait_for(core.checked.wait(), 5)
    pump.close()


async def test_the_log_of_an_earlier_start_stays_beside_the_new_one(core, tmp_path: Path) -> None:
    deployment = Deployment(record=str(tmp_path / "record"))
    for revision in (1, 2, 3):
        pump = Pump(core, lambda command: None, event_log=open_event_log(deployment, "core", Troubles()))
        pump.apply(revision, b"")
        pump.close()
    logs = {path.name: list(read_records(path.read_bytes())) for path in (tmp_path / "record").iterdir()}
    found = {name: records[1].event.revision for name, records in logs.items()}
    assert found == {"core.1.log": 1, "core.2.log": 2, "core.log": 3}


async def test_the_event_log_holds_every_event_with_its_answer(core, tmp_path: Path) -> None:
    path = tmp_path / "new" / "core.log"
    core.answers = {CancelRequested: [done(1)]}
    pump = Pump(core, lambda command: None, event_log=EventLog(path, Troubles()))
    pump.apply(7, b"document")
    pump.handle(CancelRequested(1))
    pump.close()
    records = list(read_records(path.read_bytes()))
    assert [type(record.event) for record in records] == [Started, PolicyApplied, CancelRequested]
    assert records[1].event == PolicyApplied(7, b"document")
    assert [record.now for record in records] == core.times
    assert b"Settle" in records[2].commands


async def test_a_log_on_a_full_disk_ends_there_and_the_core_goes_on(core) -> None:
    troubles = Troubles()
    pump = Pump(core, lambda command: None, event_log=EventLog(Path("/dev/full"), troubles))
    pump.apply(7, bytes(100_000))
    pump.handle(CancelRequested(1))
    pump.close()
    assert troubles.sentences == [
        "event_log: /dev/full cannot be written: No space left on device; nothing is recorded until the next start"
    ]
    assert len(core.times) == 3


async def test_a_log_whose_last_bytes_find_no_room_is_closed_all_the_same(core) -> None:
    troubles = Troubles()
    pump = Pump(core, lambda command: None, event_log=EventLog(Path("/dev/full"), troubles))
    pump.apply(7, b"document")
    pump.close()
    assert len(troubles.sentences) == 1
