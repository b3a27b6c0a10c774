"""The active policy file and the agreement on its revisions.

Admission alone watches the file. A save that can be used becomes a revision: `Prepare` to every service, `Commit` when
all of them are ready, `Abort` when one refuses or does not answer within two seconds. A save that cannot be used
changes nothing and says why. Knows documents as bytes; what they mean is the cores' matter.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from policies.document.diff import changes
from policies.document.loading import load_live_policy, load_policy
from policies.document.problems import PolicyError
from services.policy_reading import PolicyText, read_text
from services.runtime import StartError, describe
from services.transport import Stream
from services.wire import PolicyAbort, PolicyCommit, PolicyNow, PolicyPrepare, PolicyPrepared, PolicyStatus
from services.wire_parts import Message

POLL_S = 0.1
ANSWER_S = 2.0
MISSES_TO_SAY = 10
"""Looks in a row without a file after which that is worth a warning."""

log = logging.getLogger(__name__)

Signature = tuple[tuple[int, int, int] | None, ...]
"""Of the policy file and of those that it names; None: it is not there."""


def validate(document: bytes, file: str) -> str:
    """What is wrong with a policy document, one problem a line; empty if nothing is."""
    try:
        load_live_policy(document, file)
    except PolicyError as error:
        return str(error)
    return ""


class PolicyFile:
    """Watches a policy file, and those that it names, by looking at them: whatever way an editor saves (in place, or by
    renaming) is seen.

    A save is taken when all have looked the same twice, so that half a file is not.

    Args:
        changed: told of each new content.
        unusable: told of a new content that is not complete and why, in sentences; of none (empty) when the file itself
            cannot be read any more.
    """

    def __init__(self, path: Path, changed: Callable[[bytes], None], unusable: Callable[[bytes, str], None]) -> None:
        self.path = path
        self.problem = ""
        """Why the file cannot be read; empty: it can, or has only just begun not to."""
        self._changed = changed
        self._unusable = unusable
        self._files: tuple[Path, ...] = ()
        """Those that the policy file names."""
        self._content: tuple[bytes, str] | None = None
        """What was read last, and why it is not complete."""
        self._looked: Signature | None = None
        self._read: Signature | None = None
        self._misses = 0
        self._task: asyncio.Task[None] | None = None

    def read(self) -> bytes:
        """The file's content now; what `changed` is called for comes later.

        Raises:
            OSError: it cannot be read.
            PolicyError: a file that it names cannot be read or used.
        """
        self._files = read_text(self.path).files
        self._looked = self._read = self._signature()
        text = read_text(self.path)
        self._content = _said(text)
        if text.problems is not None:
            raise text.problems
        return text.document

    def forget(self) -> None:
        """What was read could not be used: the same content saved again is a save."""
        self._content = None

    def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.get_running_loop().create_task(self._watch())

    def stop(self) -> None:
        """Watch no more."""
        if self._task is not None:
            self._task.cancel()

    def look(self) -> tuple[bytes, str] | None:
        """One look at the files: the content if that is new and settled, and why it is not complete (empty: it is).
        Blocks on the disk.
        """
        try:
            signature = self._signature()
            settled, self._looked = signature == self._looked, signature
            if not settled or signature == self._read:
                return None
            text = read_text(self.path)
            if text.files != self._files:
                # Only now is it known what else must have settled.
                self._files, self._looked = text.files, None
                return None
            if self._signature() != signature:
                return None
        except OSError as error:
            # Between the removal and the rename of an editor there is no file: the next look finds it.
            self._misses += 1
            if self._misses >= MISSES_TO_SAY and not self.problem:
                self.problem = f"{self.path}: cannot be read: {error.strerror}"
                # Whatever it holds when it can be read again is a save, also if that is what was there before: whoever
                # asks is then told that all is well.
                self._content = self._read = None
            return None
        self._misses = 0
        self.problem = ""
        self._read = signature
        content = _said(text)
        if content == self._content:
            return None
        self._content = content
        return content

    def _signature(self) -> Signature:
        """Raises `OSError`: the policy file cannot be looked at."""
        return (_of(self.path.stat()), *(_if_there(file) for file in self._files))

    async def _watch(self) -> None:
        said = ""
        while True:
            await asyncio.sleep(POLL_S)
            content = await asyncio.to_thread(self.look)
            if content is not None:
                document, why = content
                if why:
                    self._unusable(document, why)
                else:
                    self._changed(document)
            if self.problem and self.problem != said:
                self._unusable(b"", self.problem)
            said = self.problem


class PolicyRevisions:
    """Agrees with the other services on each revision, one at a time, in the order of the saves.

    Revisions count from 1 and a number is never used twice, whatever became of it.

    Args:
        file: what messages call the policy file.
        apply: told of every revision that comes into force.
        rejected: told of every save that did not, with the revision that stays and the reason.
    """

    def __init__(
        self, file: str, apply: Callable[[int, bytes], None], rejected: Callable[[int, bytes, str], None]
    ) -> None:
        self.revision = 0
        self.document = b""
        self._file = file
        self._apply = apply
        self._rejected = rejected
        self._streams: list[Stream] = []
        self._newest = 0
        self._proposed: bytes | None = None
        self._unanswered: list[Stream] = []
        self._saved: deque[bytes] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._status: PolicyStatus | None = None

    def first(self, document: bytes, revision: int = 1) -> None:
        """The revision of the start, valid already."""
        self._newest = revision
        self._put_in_force(revision, document)

    def saved(self, document: bytes) -> None:
        """The file was saved with new content."""
        problems = validate(document, self._file)
        if problems:
            self._reject(document, problems)
            return
        self._saved.append(document)
        self._propose_next()

    def unusable(self, document: bytes, why: str) -> None:
        """The file was saved, and is not complete; or (empty) cannot be read any more."""
        self._reject(document, why)

    def joined(self, stream: Stream) -> None:
        """A service has connected: it gets the revision in force, and takes part in the one proposed."""
        self._streams.append(stream)
        stream.send(PolicyNow(self.revision, self.document))
        if self._status is not None and stream.peer.service == "gateway":
            stream.send(self._status)
        if self._proposed is not None:
            self._unanswered.append(stream)
            stream.send(PolicyPrepare(self._newest, self._proposed))

    def left(self, stream: Stream) -> None:
        """A service is gone; nobody waits for its answer."""
        self._streams.remove(stream)
        self._answered(stream)

    def prepared(self, stream: Stream, message: PolicyPrepared) -> None:
        """A service answered; answers about another revision are too late."""
        if self._proposed is None or message.revision != self._newest:
            return
        if message.error:
            self._abort(f"{describe(stream)} cannot use it: {message.error}")
        else:
            self._answered(stream)

    def stop(self) -> None:
        """Forget the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _propose_next(self) -> None:
        if self._proposed is not None or not self._saved:
            return
        self._newest += 1
        self._proposed = self._saved.popleft()
        self._unanswered = list(self._streams)
        self._send(PolicyPrepare(self._newest, self._proposed))
        self._timer = asyncio.get_running_loop().call_later(ANSWER_S, self._too_late)
        self._commit_if_agreed()

    def _answered(self, stream: Stream) -> None:
        if stream in self._unanswered:
            self._unanswered.remove(stream)
            self._commit_if_agreed()

    def _commit_if_agreed(self) -> None:
        if self._proposed is None or self._unanswered:
            return
        document = self._close()
        self._send(PolicyCommit(self._newest))
        self._put_in_force(self._newest, document)
        self._announce(PolicyStatus(self.revision, "applied"))
        self._propose_next()

    def _too_late(self) -> None:
        late = ", ".join(describe(stream) for stream in self._unanswered)
        self._abort(f"no answer within {ANSWER_S:g} s from {late}")

    def _abort(self, why: str) -> None:
        document = self._close()
        self._send(PolicyAbort(self._newest))
        self._reject(document, why)
        self._propose_next()

    def _close(self) -> bytes:
        document, self._proposed = self._proposed or b"", None
        self._unanswered = []
        self.stop()
        return document

    def _put_in_force(self, revision: int, document: bytes) -> None:
        before, self.revision, self.document = self.document, revision, document
        log.info("policy revision %d is in force (%s)", revision, self._file)
        if before:
            for change in changes(load_policy(before), load_policy(document)):
                log.info("policy revision %d: %s", revision, change)
        self._apply(revision, document)

    def _reject(self, document: bytes, why: str) -> None:
        log.error("the policy file cannot be used, revision %d stays in force:\n%s", self.revision, why)
        self._rejected(self.revision, document, why)
        self._announce(PolicyStatus(self.revision, "rejected", why))

    def _announce(self, status: PolicyStatus) -> None:
        self._status = status
        for stream in self._streams:
            if stream.peer.service == "gateway":
                stream.send(status)

    def _send(self, message: Message) -> None:
        for stream in self._streams:
            stream.send(message)


def first_document(file: PolicyFile) -> bytes:
    """What the file holds at the start.

    Raises:
        StartError: it cannot be read or used.
    """
    try:
        document = file.read()
    except OSError as error:
        raise StartError(f"{file.path}: the policy cannot be read: {error.strerror}") from error
    except PolicyError as error:
        raise StartError(str(error)) from error
    problems = validate(document, str(file.path))
    if problems:
        raise StartError(problems)
    return document


def _said(text: PolicyText) -> tuple[bytes, str]:
    return text.document, "" if text.problems is None else str(text.problems)


def _of(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _if_there(path: Path) -> tuple[int, int, int] | None:
    try:
        return _of(path.stat())
    except (OSError, ValueError):
        return None
