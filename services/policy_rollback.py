"""`fairlead policy rollback [REVISION]`: an earlier policy becomes the next revision."""

import argparse

from services import policy_documents
from services.policy_apply import apply
from services.policy_documents import CommandError, Document
from services.revisions import Revisions
from services.settings import Deployment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "revision",
        nargs="?",
        type=int,
        metavar="REVISION",
        help="which (the last one that differs from the one in force)",
    )
    parser.add_argument("--message", "-m", default="", metavar="WHY", help="why, for the history")
    policy_documents.add_data_dir(parser)


def run(args: argparse.Namespace) -> int:
    """Exit status as `policy apply`."""
    return policy_documents.run(args, _rollback)


def _rollback(deployment: Deployment, args: argparse.Namespace) -> int:
    found = _before(deployment) if args.revision is None else policy_documents.from_number(args.revision, deployment)
    return apply(deployment, found, args.message or f"rollback to {found.label}")


def _before(deployment: Deployment) -> Document:
    history = Revisions(deployment.data)
    revisions = history.all()
    for revision in reversed(revisions):
        if revision.digest != revisions[-1].digest:
            return policy_documents.from_revision(revision)
    raise CommandError(
        f"there is nothing to go back to in {history.path}: it holds no other policy than the one in force"
    )
