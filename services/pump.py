"""Drives a core live: events in, commands out, one wake-up, and the event log of it all.

The live half of "one core, two drivers" (DESIGN section 2); the other half is policies/simulation. Knows no policy and
no socket.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from policies.commands import Command, WakeAt
from policies.event_log import encode_record
from policies.events import Event, PolicyApplied, Started, Woke
from services.runtime import StartError
from services.settings import Deployment
from services.troubles import EVENT_LOG, Troubles

IDLE_CHECK_S = 5.0
"""A core that heard nothing for this long has its invariants checked, once."""


class Core(Protocol):
    """A decision core."""

    def handle(self, event: Any, now: float) -> list[Command]:
        """What to do about an event at `now`, seconds."""

    def check(self) -> None:
        """Raise if an invariant does not hold."""


class EventLog:
    """Appends every event and what the core answered to a file (`fairlead replay --log DIR --verify` reads it).

    One that cannot be written any more ends there: a log with a gap would replay to something else.
    """

    def __init__(self, path: Path, troubles: Troubles) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._troubles = troubles
        self._file: BinaryIO | None = path.open("wb")

    def write(self, now: float, event: Any, commands: list[Command]) -> None:
        """Append a record."""
        if self._file is None:
            return
        try:
            self._file.write(encode_record(now, event, commands))
        except OSError as error:
            self._end(self._file, error)

    def close(self) -> None:
        """Flush and close."""
        if self._file is None:
            return
        try:
            self._file.close()
        except OSError as error:
            self._end(self._file, error)

    def _end(self, file: BinaryIO, error: OSError) -> None:
        self._file = None
        with contextlib.suppress(OSError):
            file.close()
        sentence = f"{self._path} cannot be written: {error.strerror}; nothing is recorded until the next start"
        self._troubles.begin(EVENT_LOG, sentence)


def open_event_log(deployment: Deployment, service: str, troubles: Troubles) -> EventLog | None:
    """The event log of a core if this deployment records. Every start begins one, because its core begins anew; those
    of earlier starts stay beside it as `SERVICE.1.log` and so on.

    Raises:
        StartError: the folder cannot be written.
    """
    if not deployment.record:
        return None
    path = Path(deployment.record) / f"{service}.log"
    try:
        _put_aside(path)
        return EventLog(path, troubles)
    except OSError as error:
        raise StartError(f"{path}: the event log cannot be written: {error.strerror}") from error


def _put_aside(path: Path) -> None:
    """What led to a crash is in the log before it: it is kept under the next free number."""
    if path.exists() and path.stat().st_size:
        number = 1
        while (aside := path.with_suffix(f".{number}.log")).exists():
            number += 1
        path.rename(aside)


Observer = Callable[[float, Event, list[Command]], None]
"""Told (core time, event, what the core answered)."""


class Pump:
    """Hands events to a core, one at a time, and has its commands performed in order.

    The core hears nothing before its first policy: events that come earlier wait.

    Attributes:
        observers: told of every event after the core has answered, in this order.
        revision: the policy revision in force; 0 before the first.
    """

    def __init__(
        self,
        core: Core,
        perform: Callable[[Any], None],
        *,
        event_log: EventLog | None = None,
        check: bool = False,
    ) -> None:
        self._core = core
        self._perform = perform
        self._event_log = event_log
        self._check = check
        self._inbox: deque[Event] = deque()
        self._running = False
        self._wake: asyncio.TimerHandle | None = None
        self._idle_check: asyncio.TimerHandle | None = None
        self._num_events = 0
        self._num_events_checked = 0
        self.observers: list[Observer] = []
        self.revision = 0

    def apply(self, revision: int, document: bytes) -> None:
        """A policy revision takes effect now; the first one starts the core."""
        event = PolicyApplied(revision, document)
        if self.revision:
            self.revision = revision
            self.handle(event)
            return
        self.revision = revision
        self._inbox.extendleft((event, Started(time.time())))
        self._run()
        self._check_when_idle(num_events_before=0)

    def handle(self, event: Event) -> None:
        """Hand an event to the core and perform what it asks for."""
        self._inbox.append(event)
        if self.revision:
            self._run()

    def close(self) -> None:
        """Forget the timers and close the log."""
        for timer in (self._wake, self._idle_check):
            if timer is not None:
                timer.cancel()
        if self._event_log is not None:
            self._event_log.close()

    def _run(self) -> None:
        # An event that arises while another's commands are performed waits for its turn.
        if self._running:
            return
        self._running = True
        try:
            while self._inbox:
                self._one(self._inbox.popleft())
        finally:
            self._running = False

    def _one(self, event: Event) -> None:
        # The clock of `loop.time()`, but not its value: uvloop's is cached and in whole milliseconds.
        now = time.monotonic()
        self._num_events += 1
        commands = self._core.handle(event, now)
        if self._event_log is not None:
            self._event_log.write(now, event, commands)
        for observe in self.observers:
            observe(now, event, commands)
        for command in commands:
            if isinstance(command, WakeAt):
                self._wake_at(command.at_s)
            else:
                self._perform(command)
        if self._check:
            self._core.check()

    def _check_when_idle(self, num_events_before: int) -> None:
        if self._num_events_checked != self._num_events == num_events_before:
            self._core.check()
            self._num_events_checked = self._num_events
        self._idle_check = asyncio.get_running_loop().call_later(IDLE_CHECK_S, self._check_when_idle, self._num_events)

    def _wake_at(self, at_s: float) -> None:
        if self._wake is not None:
            self._wake.cancel()
        delay_s = max(0.0, at_s - time.monotonic())
        self._wake = asyncio.get_running_loop().call_later(delay_s, self._on_wake, at_s)

    def _on_wake(self, at_s: float) -> None:
        # Timers are rounded to milliseconds: one that fires early would wake the core before its time, for nothing.
        if time.monotonic() < at_s:
            self._wake = asyncio.get_running_loop().call_later(0.001, self._on_wake, at_s)
            return
        self._wake = None
        self.handle(Woke())
