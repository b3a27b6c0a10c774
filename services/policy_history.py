"""`fairlead policy history`: the revisions there have been, and what became of the last save."""

import argparse
import json
from datetime import datetime

from services import policy_documents
from services.revisions import Revision, Revisions
from services.settings import Deployment

DIGEST_DIGITS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--json", action="store_true", help="as a JSON list, oldest first")
    policy_documents.add_data_dir(parser)


def run(args: argparse.Namespace) -> int:
    """A table, newest first, and 0; 2 where the history cannot be read."""
    return policy_documents.run(args, _history)


def _history(deployment: Deployment, args: argparse.Namespace) -> int:
    history = Revisions(deployment.data)
    revisions, save = history.all(), history.last_save()
    if args.json:
        print(json.dumps([_fields(revision) for revision in revisions], indent=2))
        return 0
    if not revisions:
        print(f"no revision yet: the services have not been started on {deployment.data}")
        return 0
    rows = [("REVISION", "SINCE", "NAME", "DIGEST", "BY", "MESSAGE")]
    for revision in reversed(revisions):
        since = datetime.fromtimestamp(revision.unix_s).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        author = revision.author or "(the file was edited)"
        rows.append(
            (str(revision.revision), since, revision.name, revision.digest[:DIGEST_DIGITS], author, revision.message)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if save is not None and save.error and save.unix_s > revisions[-1].unix_s:
        print(f"\nThe last save, {save.digest[:DIGEST_DIGITS]}, was not applied:\n{save.error}")
    return 0


def _fields(revision: Revision) -> dict[str, str | int | float]:
    fields = revision._asdict()
    return {**fields, "document": revision.document.decode("utf-8", errors="replace")}
