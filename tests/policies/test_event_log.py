"""What a core was told and answered, as bytes."""

from typing import Any

import pytest

from policies.commands import Command, Refuse, WakeAt
from policies.event_log import EventLogError, encode_record, read_records, verify
from policies.events import Arrived, PolicyApplied, Started, StepEnded, TokensProduced, Woke

EVENTS = [
    Started(wall_s=1.5),
    PolicyApplied(1, b"version: 1\n"),
    Arrived(7, "acme", "free", 10, 20, allowed_classes=("paid",)),
    TokensProduced([7, 8]),
    StepEnded(0, 3, 0.05, ended=[7]),
    Woke(),
]


class Echo:
    """Answers with how many events it has seen."""

    def __init__(self, lie_at: int = 0) -> None:
        self.seen = 0
        self.lie_at = lie_at

    def handle(self, event: Any, now: float) -> list[Command]:
        self.seen += 1
        return [WakeAt(now + (self.seen == self.lie_at))] if self.seen % 2 else []


def recorded() -> bytes:
    core = Echo()
    timed = [(float(number), event) for number, event in enumerate(EVENTS)]
    return b"".join(encode_record(now, event, core.handle(event, now)) for now, event in timed)


def test_records_come_back_as_they_were_written() -> None:
    records = list(read_records(recorded()))
    assert [record.event for record in records] == EVENTS
    assert [record.now for record in records] == [0, 1, 2, 3, 4, 5]


def test_a_core_that_decides_the_same_verifies() -> None:
    assert verify(Echo(), read_records(recorded())) is None


def test_the_first_difference_names_record_time_event_and_both_answers() -> None:
    difference = verify(Echo(lie_at=3), read_records(recorded()))
    assert difference is not None
    assert (difference.record, difference.now, difference.event) == (3, 2.0, EVENTS[2])
    assert str(difference).splitlines()[2:] == [
        "  recorded: WakeAt(at_s=2.0)",
        "  replayed: WakeAt(at_s=3.0)",
    ]


def test_an_answer_that_is_missing_is_shown_as_no_command() -> None:
    log = encode_record(0.0, EVENTS[0], [Refuse(1, "queue_full", "full")])
    difference = verify(Echo(), [*read_records(encode_record(0.0, EVENTS[0], [])), *read_records(log)])
    assert "recorded: no command" in str(difference)


def test_a_log_cut_short_yields_what_is_whole_and_says_where_it_ends() -> None:
    log = recorded()
    records = read_records(log[:-2])
    for _ in EVENTS[:-1]:
        next(records)
    with pytest.raises(
        EventLogError, match=rf"record 6, at byte \d+, is cut short: the log ends at byte {len(log) - 2}"
    ):
        next(records)
    with pytest.raises(EventLogError, match="record 1, at byte 0, is cut short"):
        next(read_records(b"\x01"))


def test_bytes_that_are_no_record_are_named() -> None:
    with pytest.raises(EventLogError, match="record 1, at byte 0, cannot be read"):
        next(read_records(b"\x01\x00\x00\x00\xc0"))
