"""Admission's pen: writes the history of the policy in the order of the revisions, without keeping anyone waiting.

A history that cannot be written is a warning: revisions are agreed on all the same.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from policies.document.loading import load_policy
from services.revisions import HistoryError, Revisions, digest

log = logging.getLogger(__name__)


class History:
    """What became of the saves, from the service's start on."""

    def __init__(self, data: str) -> None:
        self._revisions = Revisions(data)
        self._thread = ThreadPoolExecutor(1, "history")

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
        _attempt(lambda: self._revisions.began(number, load_policy(document).name, document))
        return number

    def applied(self, revision: int, document: bytes) -> None:
        """A save has become this revision."""
        self._write(lambda: self._revisions.applied(revision, load_policy(document).name, document))

    def rejected(self, revision: int, document: bytes, error: str) -> None:
        """A save was not used; this revision stays in force."""
        self._write(lambda: self._revisions.rejected(revision, document, error))

    def close(self) -> None:
        """Finish what is being written."""
        self._thread.shutdown()

    def _write(self, write: Callable[[], None]) -> None:
        self._thread.submit(_attempt, write)


def _attempt(write: Callable[[], None]) -> None:
    try:
        write()
    except HistoryError as error:
        log.warning("%s", error)
