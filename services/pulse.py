"""The sign of life that each process gives once a second, and who looks at it.

To its supervisor it is a byte in a pipe, which needs no disk and no clock; to health checks the age of the ready file.
Whoever cannot give it (stopped, or stuck in a callback) cannot serve either.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import NamedTuple

BEAT_S = 1.0


class Pulse:
    """The end that gives it.

    Args:
        ready: the process's ready file.
        descriptor: the pipe to the supervisor; None: nobody supervises this process.
        orphaned: called once when the supervisor has gone.
    """

    def __init__(self, ready: Path, descriptor: int | None = None, orphaned: Callable[[], None] | None = None) -> None:
        self._ready = ready
        self._descriptor = descriptor
        self._orphaned = orphaned or _end
        if descriptor is not None:
            # A supervisor that does not read (somebody pressed Ctrl-Z) must not hold up its services.
            os.set_blocking(descriptor, False)

    def beat(self) -> None:
        """This process lives."""
        if self._descriptor is not None:
            try:
                os.write(self._descriptor, b".")
            except BrokenPipeError:
                self._descriptor = None
                self._orphaned()
            except OSError:
                pass  # a supervisor that does not read has enough to read
        # Not there while the service is not ready; on a disk that cannot be written its age says so.
        with contextlib.suppress(OSError):
            os.utime(self._ready)


def _end() -> None:
    """As the kernel does where it tells of a parent's end, and told us in time."""
    os.kill(os.getpid(), signal.SIGTERM)


def age_s(ready: Path) -> float | None:
    """Seconds since a process last gave a sign of life; None: it is not ready."""
    try:
        return time.time() - ready.stat().st_mtime
    except FileNotFoundError:
        return None


class Work(NamedTuple):
    """What the kernel says of a process."""

    is_runnable: bool
    """It computes, or waits for a processor to do so."""
    cpu_s: float
    """Since its start."""


def work_of(pid: int) -> Work | None:
    """Of a process; None: it has gone, or this system does not tell."""
    try:
        # After the name, which is in brackets and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return Work(fields[0] == "R", (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))


class Listener:
    """The supervisor's end, of one process."""

    def __init__(self) -> None:
        descriptor, self.given = os.pipe()
        """`given`: for the process; close it here when that has been started."""
        os.set_blocking(descriptor, False)
        self._pipe = FileIO(descriptor)
        self.num_beats = 0
        self.silent_s = 0.0
        """Since the last beat, or since the start; of the time that it wanted a processor only what it was given."""
        self._cpu_s = 0.0

    def look(self, elapsed_s: float, work: Work | None = None) -> None:
        """Read what came; so much time has passed since the last look."""
        beats = len(self._pipe.read(4096) or b"")  # None: nothing came
        self.num_beats += beats
        # A machine that slept, or froze us together with them, is no silence: nobody could have been heard.
        silent_s = min(elapsed_s, BEAT_S)
        if work is not None:
            if work.is_runnable:
                # On a machine that is short of processors it may not have come to it, which is no fault of its own.
                silent_s = min(silent_s, work.cpu_s - self._cpu_s)
            self._cpu_s = work.cpu_s
        self.silent_s = 0.0 if beats else self.silent_s + silent_s

    def close(self) -> None:
        """The process has ended."""
        self._pipe.close()
