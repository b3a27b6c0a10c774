"""Copies of the core for operators who try a candidate policy beside the live one (`fairlead policy plan --shadow`).

Owns who watches and for how long. All the work with a candidate is done where the copy goes; what it costs here is one
copy, and the bytes of every event while somebody watches. Knows no policy.
"""

import asyncio
import logging
import time

from policies.commands import Command
from policies.event_log import encode_record
from policies.events import Event
from policies.scheduling.core import SchedulerCore
from policies.scheduling.shadow import copy_of
from services.pump import Pump
from services.runtime import describe
from services.transport import Stream
from services.wire_operator import MirrorEnded, MirrorRecords, MirrorState

OPERATOR = "operator"
"""What a stream calls itself that asks for a mirror."""
SEND_S = 0.05
LONGEST_S = 86400.0
ROOM_BYTES = 1024
"""Of a frame, for what is not the core's copy."""

log = logging.getLogger(__name__)


class Mirrors:
    """Every operator's stream that watches this core."""

    def __init__(self, core: SchedulerCore, pump: Pump, max_frame_bytes: int) -> None:
        self._core = core
        self._pump = pump
        self._max_frame_bytes = max_frame_bytes
        self._ends: dict[Stream, asyncio.TimerHandle] = {}
        self._records: list[bytes] = []
        self._sends: asyncio.TimerHandle | None = None

    def begin(self, stream: Stream, duration_s: float) -> None:
        """Send the core as it is now, then what it is told."""
        self._send()  # to those who watch already: it is before this copy
        began = time.monotonic()
        state = copy_of(self._core)
        log.info(
            "%s watches: a copy of %d bytes, %.1f ms", describe(stream), len(state), (time.monotonic() - began) * 1e3
        )
        if len(state) + ROOM_BYTES > self._max_frame_bytes:
            size = f"{len(state)} bytes; streams.max_frame_bytes is {self._max_frame_bytes}"
            stream.send(MirrorEnded(f"the scheduler's state has {size}"))
            return
        self.leave(stream)
        stream.send(MirrorState(state))
        seconds = min(max(0.0, duration_s), LONGEST_S)
        self._ends[stream] = asyncio.get_running_loop().call_later(seconds, self.end, stream, "")
        if self._observe not in self._pump.observers:
            self._pump.observers.append(self._observe)

    def end(self, stream: Stream, error: str) -> None:
        """The time is up, or the operator does not keep up."""
        if stream in self._ends:
            self._send()
            stream.send(MirrorEnded(error))
            self.leave(stream)

    def leave(self, stream: Stream) -> None:
        """An operator is gone."""
        timer = self._ends.pop(stream, None)
        if timer is not None:
            timer.cancel()
        if not self._ends:
            self.close()

    def close(self) -> None:
        """Nobody watches any more."""
        for timer in self._ends.values():
            timer.cancel()
        self._ends.clear()
        if self._sends is not None:
            self._sends.cancel()
            self._sends = None
        self._records.clear()
        if self._observe in self._pump.observers:
            self._pump.observers.remove(self._observe)

    def _observe(self, now: float, event: Event, commands: list[Command]) -> None:
        self._records.append(encode_record(now, event, commands))
        if self._sends is None:
            self._sends = asyncio.get_running_loop().call_later(SEND_S, self._send)

    def _send(self) -> None:
        if self._sends is not None:
            self._sends.cancel()
            self._sends = None
        if self._records:
            message = MirrorRecords(b"".join(self._records))
            self._records.clear()
            for stream in self._ends:
                stream.send(message)
