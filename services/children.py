"""Service processes as their supervisor sees them: how one is started, whether it lives and works, how it ended.

Decides nothing: when a process is started, asked to leave or killed is the supervisor's matter.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from services.crashes import Crashes
from services.health import ready_file
from services.pulse import Listener, work_of
from services.settings import REPOSITORY, child_environment

LAST_WORDS_BYTES = 16 * 2**10
HAND_OVER = signal.SIGUSR1
"""Leave at once: what is in hand goes on in a successor that is about to start."""


class Child:
    """A process from its start to its end.

    Attributes:
        pulse: its signs of life.
        leaving_s: since it was asked to leave; None: it was not.

    Raises:
        OSError: it cannot be started; nothing of it is left.
    """

    def __init__(self, name: str, command: list[str], *, log: Path, deployment: Path, descriptors: list[int]) -> None:
        self.name = name
        self.log = log
        self.leaving_s: float | None = None
        self._ready = ready_file(str(deployment.parent), name)
        self._killed_for = ""
        self.pulse = Listener()
        try:
            log.parent.mkdir(exist_ok=True)
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "services.cli", "serve", *command, f"--pulse={self.pulse.given}"],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[self.pulse.given, *descriptors],
                    # `-m` puts the working folder before the standard library: a caller's `http.py` would be imported.
                    cwd=REPOSITORY,
                    env=child_environment(deployment),
                    # Its own session: Ctrl-C reaches the supervisor alone, which stops the services in order.
                    start_new_session=True,
                )
        except OSError:
            self.pulse.close()
            raise
        finally:
            os.close(self.pulse.given)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """Whether it can do its work now, as it says."""
        return self.about is not None

    @property
    def about(self) -> str | None:
        """What it says of itself; None: it is not ready."""
        with contextlib.suppress(OSError):
            owner, _, about = self._ready.read_text().partition("\n")
            if owner == str(self.pid):
                return about
        return None

    @property
    def status(self) -> int | None:
        """How it ended; None: it runs. Below zero: a signal of this number ended it."""
        return self._process.poll()

    @property
    def last_words(self) -> str:
        """Why it ended, as far as anybody knows: our reason for killing it, the signal, or the end of its log."""
        if self._killed_for:
            return f"it {self._killed_for} and was killed (log {self.log})"
        words = self._last_line()
        status = self.status
        if status is not None and status < 0:
            return f"signal {-status}, {signal.strsignal(-status)}; its log ends with: {words} (log {self.log})"
        return f"{words} (status {status}, log {self.log})"

    def _last_line(self) -> str:
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - LAST_WORDS_BYTES))
                lines = log.read().decode(errors="replace").strip().splitlines()
        except OSError as error:
            return f"its log cannot be read: {error.strerror}"
        return lines[-1].strip() if lines else "no word in its log"

    @property
    def is_killed(self) -> bool:
        """Whether it was; the kernel may take its time, as for what waits for a disk that does not answer."""
        return bool(self._killed_for)

    def look(self, elapsed_s: float) -> None:
        """Hear its signs of life; so much time has passed since the last look."""
        self.pulse.look(elapsed_s, work_of(self.pid))

    def leave(self, now: float, number: signal.Signals) -> None:
        """Ask it to end: SIGTERM drains, `HAND_OVER` does not wait."""
        self.leaving_s = now
        self._process.send_signal(number)

    def kill(self, reason: str) -> None:
        """End it whatever it does; `reason` completes the sentence "it ..."."""
        self._killed_for = reason
        self._process.kill()

    def bury(self) -> None:
        """It has ended: remove what it left."""
        self._process.wait()
        self.pulse.close()
        with contextlib.suppress(OSError):
            if self._ready.read_text().split()[0] == str(self.pid):
                self._ready.unlink()


class Place:
    """What is to run under one name, and how often it ended.

    Attributes:
        child: the process; None: it has ended, or has not begun.
        successor: takes over from `child` once it is ready.
        worked_s: for how long its processes have given signs of life, all together.
        start_at_s: when the next one is started.
        hindered: what keeps the next one from being started; empty: nothing does.
        given_up: why no more is; empty: it is not.
    """

    def __init__(self, name: str, service: str, replica: int, crashes: Crashes) -> None:
        self.name = name
        self.service = service
        self.replica = replica
        self.crashes = crashes
        self.child: Child | None = None
        self.successor: Child | None = None
        self.worked_s = 0.0
        self.start_at_s = 0.0
        self.hindered = ""
        self.given_up = ""

    @property
    def is_ready(self) -> bool:
        """Whether its process can do its work now."""
        return self.child is not None and self.child.is_ready
