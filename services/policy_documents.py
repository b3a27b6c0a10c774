"""What the `fairlead policy` commands are given: a file, the number of a revision, or nothing for the policy in force.

Owns how a name on the command line becomes a checked document, and the exit status of what cannot be done.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from policies.document.loading import load_policy
from policies.document.problems import PolicyError
from policies.document.schema import Policy
from services.policy_reading import read_text
from services.revisions import HistoryError, Revision, Revisions
from services.settings import Deployment, SettingsError, deployment_of
from services.traffic.reading import TrafficError

BAD_INPUT = 2


class CommandError(Exception):
    """What was asked for cannot be done; the sentence says why and what can."""


class Document(NamedTuple):
    """A policy that can be used."""

    label: str
    """The file's name, or `revision 3`."""
    content: bytes
    """Complete, whatever files it names."""
    policy: Policy
    source: bytes
    """As the file has it."""


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """The option that says which deployment is meant."""
    parser.add_argument("--data-dir", metavar="DIR", help="the deployment's data folder")


def run(args: argparse.Namespace, act: Callable[[Deployment, argparse.Namespace], int]) -> int:
    """Carry out a command on the deployment it names; 2 and sentences on stderr if that cannot be done."""
    try:
        return act(deployment_of(args.data_dir), args)
    except (PolicyError, SettingsError) as error:
        print(error, file=sys.stderr)
    except (CommandError, HistoryError, TrafficError) as error:
        print(f"fairlead {args.command}: {error}", file=sys.stderr)
    return BAD_INPUT


def from_file(path: Path) -> Document:
    """The policy in a file.

    Raises:
        CommandError: it cannot be read.
        PolicyError: it cannot be used.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise CommandError(f"{path}: cannot be read: {error.strerror}") from error
    if text.problems is not None:
        raise text.problems
    return Document(str(path), text.document, load_policy(text.document, str(path)), text.source)


def from_name(name: str, deployment: Deployment) -> Document:
    """The policy in a file, or of a revision where the name is a number and no file; errors as those two."""
    is_file = not name.isdecimal() or Path(name).exists()
    return from_file(Path(name)) if is_file else from_number(int(name), deployment)


def from_number(number: int, deployment: Deployment) -> Document:
    """The policy of a revision.

    Raises:
        CommandError: it is not remembered.
        HistoryError: the history cannot be read.
        PolicyError: it cannot be used, as one of an earlier version may be.
    """
    history = Revisions(deployment.data)
    found = history.get(number)
    if found is None:
        numbers = [revision.revision for revision in history.all()]
        known = f"it has {numbers[0]} to {numbers[-1]}" if numbers else "it is empty"
        raise CommandError(f"there is no revision {number} in {history.path}: {known}")
    return from_revision(found)


def in_force(deployment: Deployment) -> Document:
    """The policy in force, or that was when the services stopped; before their first start the one in the file.

    Raises:
        CommandError, HistoryError, PolicyError: as `from_file` and `from_number`.
    """
    last = Revisions(deployment.data).last()
    return from_file(Path(deployment.policy)) if last is None else from_revision(last)


def from_revision(revision: Revision) -> Document:
    """The policy of a revision; PolicyError as `from_number`."""
    label = f"revision {revision.revision}"
    return Document(label, revision.document, load_policy(revision.document, label), revision.document)
