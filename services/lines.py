"""The lines of a process's log, on their way to stderr by a thread of their own.

A pipe that nobody empties, or a disk that is full, holds up nobody who serves: lines that cannot be written are lost,
and how many is the first thing written when it works again.
"""

import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable

MOST_WAITING = 10_000
CLOSE_S = 2.0
RETRY_S = 1.0
INDENTED = "\n  "
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters but tab and the end of a line; Unicode's ends of lines, and what changes the direction of text."""


class Entries(logging.Formatter):
    """Of every entry the first line begins at the margin and no other does, and none has what moves a cursor: an entry
    quotes what strangers say, and what they say must not look like one.
    """

    def __init__(self, pattern: str, date_pattern: str) -> None:
        super().__init__(pattern, date_pattern)

    def format(self, record: logging.LogRecord) -> str:
        """As the base class has it."""
        return CONTROL.sub(_escaped, super().format(record)).replace("\n", INDENTED)


def _escaped(found: "re.Match[str]") -> str:
    return found[0].encode("unicode_escape").decode()


class Lines(logging.Handler):
    """Writes formatted records to a descriptor.

    Args:
        lost: the line that says how many were lost, before the next one that is written.
    """

    def __init__(self, descriptor: int, lost: Callable[[int], str]) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lost = lost
        self.num_lost = 0
        """On the way out, since a line was last written."""
        self._num_refused = 0
        """Because too many waited, since one was last taken."""
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a line over."""
        if self._waiting.qsize() >= MOST_WAITING:
            self._num_refused += 1
            return
        self._tell_refused()
        self._waiting.put(self.format(record))

    def _tell_refused(self) -> None:
        if self._num_refused:
            self._waiting.put(self._lost(self._num_refused))
            self._num_refused = 0

    def close(self) -> None:
        """Write what waits, for two seconds at most."""
        if not self._closed:
            self._closed = True
            self._tell_refused()
            self._waiting.put(None)
            self._thread.join(CLOSE_S)
        super().close()

    def _work(self) -> None:
        failed_at = 0.0
        while (line := self._waiting.get()) is not None:
            if self.num_lost and time.monotonic() - failed_at < RETRY_S:
                self.num_lost += 1
                continue
            try:
                if self.num_lost:
                    self._write(self._lost(self.num_lost))
                    self.num_lost = 0
                self._write(line)
            except OSError:
                failed_at = time.monotonic()
                self.num_lost += 1

    def _write(self, line: str) -> None:
        rest = f"{line}\n".encode(errors="backslashreplace")
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
