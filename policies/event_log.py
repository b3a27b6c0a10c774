"""The event log of a core: every event, when it came, and what the core answered.

Owns the bytes of a record. A log holds everything a core was told, policy revisions included, so feeding it to a fresh
core yields the identical commands: an incident replays, and a test compares. Pure: bytes in, bytes out.

A record is a 4-byte little-endian length and a msgpack array `[now, event, commands]`.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import msgspec

from policies.commands import Command, encode
from policies.events import AdmissionEvent, Event, SchedulerEvent

LENGTH_BYTES = 4


class EventLogError(Exception):
    """The bytes are not an event log; the sentence says from which record and byte on, and why."""


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One event and the answer to it."""

    now: float
    """Core time, seconds."""
    event: AdmissionEvent | SchedulerEvent
    commands: bytes
    """The command list as `policies.commands.encode` writes it."""


class Core(Protocol):
    """A core, as far as a log is concerned."""

    def handle(self, event: Any, now: float) -> list[Command]:
        """What to do about an event."""


class Difference(msgspec.Struct, frozen=True):
    """The first record to which a core answers something else than it did."""

    record: int
    """Counted from 1."""
    now: float
    event: Event
    expected: bytes
    """Commands in the log."""
    got: bytes
    """Commands of this run."""

    def __str__(self) -> str:
        """Several lines: where, what happened, both answers."""
        return (
            f"record {self.record} at {self.now:.6f} s differs\n"
            f"  event:    {self.event}\n"
            f"  recorded: {_readable(self.expected)}\n"
            f"  replayed: {_readable(self.got)}"
        )


class CutShortError(EventLogError):
    """The last record is not whole: the writer was stopped while writing it."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


def encode_record(now: float, event: Event, commands: Iterable[Command]) -> bytes:
    """Bytes of one record, ready to be appended."""
    body = _encoder.encode((now, event, encode(commands)))
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


def read_records(log: bytes) -> Iterator[Record]:
    """Records of a log in order.

    Raises:
        CutShortError: the last record is not whole.
        EventLogError: a record is none. In both cases everything before it has been yielded.
    """
    view, start, number = memoryview(log), 0, 0
    while start < len(view):
        number += 1
        body = start + LENGTH_BYTES
        end = body + int.from_bytes(view[start:body], "little")
        if body > len(view) or end > len(view):
            raise CutShortError(f"record {number}, at byte {start}, is cut short: the log ends at byte {len(view)}")
        try:
            yield _decoder.decode(view[body:end])
        except msgspec.MsgspecError as error:
            raise EventLogError(f"record {number}, at byte {start}, cannot be read: {error}") from error
        start = end


def verify(core: Core, records: Iterable[Record]) -> Difference | None:
    """Feed a fresh core what was recorded; the first answer that differs, byte for byte, or None."""
    for number, record in enumerate(records, start=1):
        got = encode(core.handle(record.event, record.now))
        if got != record.commands:
            return Difference(number, record.now, record.event, record.commands, got)
    return None


def _readable(commands: bytes) -> str:
    listed = [_command(command) for command in msgspec.msgpack.decode(commands)]
    return "; ".join(listed) or "no command"


def _command(fields: dict[str, Any]) -> str:
    shown = [f"{name}={value!r}" for name, value in fields.items() if name != "command"]
    return f"{fields['command']}({', '.join(shown)})"
