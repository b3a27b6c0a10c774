"""The sign of life that each process gives once a second, and who looks at it.

To its supervisor it is a byte in a pipe, which needs no disk and no clock; to health checks the age of the ready file.
Whoever cannot give it (stopped, or stuck in a callback) cannot serve either.
"""

import contextlib
import os
import time
from io import FileIO
from pathlib import Path

BEAT_S = 1.0


class Pulse:
    """The end that gives it.

    Args:
        ready: the process's ready file.
        descriptor: the pipe to the supervisor; None: nobody supervises this process.
    """

    def __init__(self, ready: Path, descriptor: int | None = None) -> None:
        self._ready = ready
        self._descriptor = descriptor
        if descriptor is not None:
            # A supervisor that does not read (somebody pressed Ctrl-Z) must not hold up its services.
            os.set_blocking(descriptor, False)

    def beat(self) -> None:
        """This process lives."""
        with contextlib.suppress(OSError):
            if self._descriptor is not None:
                os.write(self._descriptor, b".")
        # Not there while the service is not ready; on a disk that cannot be written its age says so.
        with contextlib.suppress(OSError):
            os.utime(self._ready)


def age_s(ready: Path) -> float | None:
    """Seconds since a process last gave a sign of life; None: it is not ready."""
    try:
        return time.time() - ready.stat().st_mtime
    except FileNotFoundError:
        return None


class Listener:
    """The supervisor's end, of one process."""

    def __init__(self) -> None:
        descriptor, self.given = os.pipe()
        """`given`: for the process; close it here when that has been started."""
        os.set_blocking(descriptor, False)
        self._pipe = FileIO(descriptor)
        self.num_beats = 0
        self.silent_s = 0.0
        """Since the last beat, or since the start."""

    def look(self, elapsed_s: float) -> None:
        """Read what came; so much time has passed since the last look."""
        beats = len(self._pipe.read(4096) or b"")  # None: nothing came
        self.num_beats += beats
        # A machine that slept, or froze us together with them, is no silence: nobody could have been heard.
        self.silent_s = 0.0 if beats else self.silent_s + min(elapsed_s, BEAT_S)

    def close(self) -> None:
        """The process has ended."""
        self._pipe.close()
