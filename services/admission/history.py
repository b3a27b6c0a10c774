"""Admission's pen: writes the history of the policy in the order of the revisions, without keeping anyone waiting.

A history that cannot be written is a trouble: revisions are agreed on all the same, and written when it works again.
"""

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from policies.document.loading import load_policy
from services.revisions import HistoryError, Revisions, digest
from services.troubles import HISTORY, Troubles

RETRY_S = 2.0
MOST_WAITING = 100
"""Saves that wait for a disk; of more, the oldest are forgotten."""

log = logging.getLogger(__name__)


class History:
    """What became of the saves, from the service's start on."""

    def __init__(self, data: str, troubles: Troubles) -> None:
        self._revisions = Revisions(data)
        self._troubles = troubles
        self._thread = ThreadPoolExecutor(1, "history")
        self._waiting: deque[Callable[[], None]] = deque(maxlen=MOST_WAITING)
        self._retry: threading.Timer | None = None

    def first(self, document: bytes) -> int:
        """The number of the revision to start with: the last one's if that was this document, else the next."""
        try:
            last = self._revisions.last()
        except HistoryError as error:
            log.warning("%s; revisions count from 1", error)
            last = None
        before, known = (0, "") if last is None else (last.revision, last.digest)
        number = before if known == digest(document) else before + 1
        # At once: nobody waits yet, and whoever applies a policy next is told what it was before.
        self._waiting.append(lambda: self._revisions.began(number, load_policy(document).name, document))
        self._work()
        return number

    def applied(self, revision: int, document: bytes) -> None:
        """A save has become this revision."""
        self._write(lambda: self._revisions.applied(revision, load_policy(document).name, document))

    def rejected(self, revision: int, document: bytes, error: str) -> None:
        """A save was not used; this revision stays in force."""
        self._write(lambda: self._revisions.rejected(revision, document, error))

    def close(self) -> None:
        """Finish what is being written."""
        if self._retry is not None:
            self._retry.cancel()
        self._thread.shutdown()

    def _write(self, write: Callable[[], None]) -> None:
        self._waiting.append(write)
        self._thread.submit(self._work)

    def _work(self) -> None:
        try:
            while self._waiting:
                self._waiting[0]()
                self._waiting.popleft()
        except HistoryError as error:
            self._troubles.begin(HISTORY, f"{error}; revisions are agreed on, and remembered once that works again")
            self._retry = threading.Timer(RETRY_S, self._try_again)
            self._retry.daemon = True
            self._retry.start()
        else:
            self._troubles.over(HISTORY, f"{self._revisions.path} is written again")

    def _try_again(self) -> None:
        # Closed meanwhile: then nobody waits for it.
        with contextlib.suppress(RuntimeError):
            self._thread.submit(self._work)
