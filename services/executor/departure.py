"""When an executor leaves: what signals ask of a process that is always busy or blocked.

SIGTERM, however often: when it holds no sequence any more, or after the time that readers have. SIGUSR1, and a SIGINT
to one that leaves already: when the steps in flight have ended; the scheduler has the rest computed elsewhere. Knows no
engine and no stream.
"""

import signal
from types import FrameType

STOPS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """It is time: unwinds whatever blocks. Not an Exception, so that nothing on the way keeps it."""


class Departure:
    """What has been asked for, and what it has to wait for.

    Attributes:
        is_due: nothing new is begun.
    """

    def __init__(self, drain_s: float) -> None:
        self._drain_s = drain_s
        self._num_steps = 0
        self._num_sequences = 0
        self._is_draining = False
        self.is_due = False

    def heed_signals(self) -> None:
        """From now on; in the main thread."""
        for number in STOPS:
            signal.signal(number, self._drain)
        for number in (signal.SIGUSR1, signal.SIGALRM):
            signal.signal(number, self._leave)

    def step_begins(self) -> None:
        """From now on a signal must not cut it short."""
        self._num_steps += 1

    def work_left(self, *, num_steps: int, num_sequences: int) -> None:
        """So many steps are in flight and so many sequences have state here.

        Raises:
            Stopped: it was time to leave as soon as there were no more.
        """
        self._num_steps, self._num_sequences = num_steps, num_sequences
        if not num_steps and (self.is_due or (self._is_draining and not num_sequences)):
            self._stop()

    def _drain(self, number: int, frame: FrameType | None) -> None:
        again, self._is_draining = self._is_draining, True
        if (again and number == signal.SIGINT) or not (self._num_steps or self._num_sequences):
            self._leave(number, frame)
        elif not again:
            signal.setitimer(signal.ITIMER_REAL, self._drain_s or 1e-6)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.is_due = True
        if not self._num_steps:
            self._stop()

    def _stop(self) -> None:
        # A signal may come again while the first one unwinds.
        for again in (*STOPS, signal.SIGUSR1, signal.SIGALRM):
            signal.signal(again, signal.SIG_IGN)
        raise Stopped
