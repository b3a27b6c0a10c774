"""How many files a process may have open: as many as it is allowed, and never too few to start.

Every client takes one. What a process may ask for itself (the soft limit) is often 1,024 for the sake of programs that
cannot count further; ours can.
"""

import logging
import os
import resource
import sys

FEWEST = 256
"""A service with its libraries, streams, stores and some clients."""
MOST = 2**20
"""Of an unlimited number: the kernel has another bound, and a table for so many is enough."""


log = logging.getLogger(__name__)


class TooFewError(Exception):
    """Nobody could be served; the sentence says what to raise."""


def raise_limit() -> int:
    """Raise this process's limit as far as it may, children's too; returns it.

    Raises:
        TooFewError: that is less than `FEWEST`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if allowed < FEWEST:
        raise TooFewError(
            f"only {allowed} files may be open at once, and {FEWEST} are needed; raise the hard limit "
            "(ulimit -Hn, LimitNOFILE=, --ulimit nofile=)"
        )
    if soft == resource.RLIM_INFINITY or soft >= allowed:
        return allowed
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed


class Descriptors:
    """Says when a process has as many files open as it may, and when that is over.

    Who connects meanwhile is cut off by the event loop, which tells nobody.
    """

    def __init__(self) -> None:
        self._are_used_up = False

    def look(self) -> None:
        """Whether one more could be open."""
        try:
            os.close(os.dup(sys.stderr.fileno()))
        except OSError:
            if not self._are_used_up:
                limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
                log.error("%d files are open, as many as may be: who connects is cut off until some are closed", limit)  # noqa: TRY400  the sentence says it all
            self._are_used_up = True
            return
        if self._are_used_up:
            log.info("files can be opened again")
        self._are_used_up = False
