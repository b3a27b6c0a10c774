"""`fairlead policy apply FILE`: put a policy into force and wait until it is.

Whoever may write the policy file and the data folder may do so; there is no other way in. The file that the services
watch is replaced whole, so that an apply and an edit are the same thing to them.
"""

import argparse
import os
import pwd
import stat
import sys
import time
from pathlib import Path

from policies.document.diff import changes
from policies.document.loading import load_live_policy
from services import files, policy_documents
from services.health import ready_file
from services.policy_documents import CommandError, Document
from services.policy_reading import placed, read_text
from services.revisions import Revisions, digest
from services.settings import Deployment

ANSWER_S = 10.0
"""Admission sees a save within a fifth of a second and gives the services two seconds to agree."""
STOPPED_ANSWER_S = 1.0
POLL_S = 0.02
READABLE = 0o644
LOCK = "policy.lock"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("file", type=Path, metavar="FILE", help="the new policy; it is copied to the file in use")
    parser.add_argument("--message", "-m", default="", metavar="WHY", help="why, for the history")
    policy_documents.add_data_dir(parser)


def run(args: argparse.Namespace) -> int:
    """0 when it is in force; 1 when the services refused it or none answered; 2 when it cannot be tried."""
    return policy_documents.run(args, _apply)


def _apply(deployment: Deployment, args: argparse.Namespace) -> int:
    return apply(deployment, policy_documents.from_file(args.file), args.message)


def apply(deployment: Deployment, new: Document, message: str) -> int:
    """Save a document as the policy in use and say what became of it; exit status as `run`.

    Raises:
        CommandError: the policy file cannot be written.
        HistoryError: the history cannot be used.
        PolicyError: the policy is for replays only.
    """
    load_live_policy(new.content, new.label)
    lock = Path(deployment.data) / LOCK
    try:
        # Of two at once the first would wait for an answer about a file that is the second's by then.
        with files.locked(lock):
            return _save(deployment, new, message)
    except OSError as error:
        raise CommandError(f"{lock}: cannot be locked: {error.strerror}") from error


def _save(deployment: Deployment, new: Document, message: str) -> int:
    history = Revisions(deployment.data)
    path = Path(deployment.policy).resolve()
    before, last_save = history.last(), history.last_save()
    # In the same folder the text goes on naming its files; elsewhere it has to be complete.
    written = new.source if placed(new.source, path).document == new.content else new.content
    if before is not None and before.digest == digest(new.content) and _content(path) == new.content:
        print(f"{new.label} is in force already, as revision {before.revision}")
        return 0
    _keep_unknown(path, history)
    history.note(new.content, _author(), message)
    try:
        files.replace(path, written, _mode(path))
    except OSError as error:
        raise CommandError(
            f"{path}: the policy in use cannot be written: {error.strerror}; the services take a save however it is "
            "made: where the file is mounted from elsewhere, save it there"
        ) from error
    ready = ready_file(deployment.run, "admission").exists()
    deadline = time.monotonic() + (ANSWER_S if ready else STOPPED_ANSWER_S)
    while (save := history.save_after(last_save.number if last_save else 0, digest(new.content))) is None:
        if time.monotonic() > deadline:
            running = f"admission did not answer within {ANSWER_S:g} s" if ready else "the services do not run"
            print(f"{path} is written, but {running}: it comes into force when they take it", file=sys.stderr)
            return 1
        time.sleep(POLL_S)
    if save.error:
        print(f"{new.label} was not applied, revision {save.revision} stays in force:\n{save.error}", file=sys.stderr)
        return 1
    print(f"revision {save.revision} is in force: {new.policy.name}, from {new.label}")
    if written != new.source:
        print(f"  the table that it names is not beside {path}, which has its points instead")
    if before is not None:
        for change in changes(policy_documents.from_revision(before).policy, new.policy):
            print(f"  {change}")
    return 0


def _content(path: Path) -> bytes | None:
    try:
        return read_text(path).document
    except OSError:
        return None


def _keep_unknown(path: Path, history: Revisions) -> None:
    """A file that is about to be replaced and is in no revision was refused, or edited just now: it is kept beside."""
    content = _content(path)
    if content is not None and not history.knows(content):
        kept = path.with_name(f"{path.name}.replaced")
        try:
            files.replace(kept, files.read_document(path), _mode(path))
        except OSError as error:
            raise CommandError(f"{kept}: cannot be written: {error.strerror}") from error
        print(f"{path} held what was never in force; it is kept as {kept}", file=sys.stderr)


def _mode(path: Path) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return READABLE


def _author() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # as in a container
        return f"user {os.getuid()}"
