"""Revisions of the policy in an admission process that is not the first: it takes part as any other service does.

The first process watches the file and proposes; this one has a stream to it. Meets what `PolicyRevisions` offers to the
service, as far as there is something to do.
"""

import asyncio
import logging
from collections.abc import Callable

from services.admission.policy_files import validate
from services.streams import Stream
from services.wire import PolicyAbort, PolicyCommit, PolicyNow, PolicyPrepare, PolicyPrepared

log = logging.getLogger(__name__)


class FollowedRevisions:
    """What the first process has told.

    Args:
        file: what messages call the policy file.
        apply: told of every revision that comes into force.

    Attributes:
        begun: set when there is a policy.
    """

    def __init__(self, file: str, apply: Callable[[int, bytes], None]) -> None:
        self.revision = 0
        self.begun = asyncio.Event()
        self._file = file
        self._apply = apply
        self._prepared: PolicyPrepare | None = None

    def received(self, stream: Stream, message: PolicyPrepare | PolicyCommit | PolicyAbort | PolicyNow) -> None:
        """A word of the first process."""
        match message:
            case PolicyPrepare():
                problems = validate(message.document, self._file)
                self._prepared = None if problems else message
                stream.send(PolicyPrepared(message.revision, problems))
            case PolicyCommit():
                if self._prepared is not None and self._prepared.revision == message.revision:
                    self._put_in_force(message.revision, self._prepared.document)
            case PolicyAbort():
                self._prepared = None
            case PolicyNow():
                if problems := validate(message.document, self._file):
                    log.error("revision %d of the first process cannot be used: %s", message.revision, problems)
                elif message.revision != self.revision:
                    self._put_in_force(message.revision, message.document)

    def joined(self, stream: Stream) -> None:
        """Others hear of the policy from the first process."""

    def left(self, stream: Stream) -> None:
        """Nobody's answer is waited for here."""

    def prepared(self, stream: Stream, message: PolicyPrepared) -> None:
        """Nothing is proposed here."""

    def stop(self) -> None:
        """No timer runs."""

    def _put_in_force(self, revision: int, document: bytes) -> None:
        self.revision, self._prepared = revision, None
        log.info("policy revision %d is in force (%s)", revision, self._file)
        self._apply(revision, document)
        self.begun.set()
