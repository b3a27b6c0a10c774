"""A policy file as it is read from a disk: one document, complete with the files that it names.

Owns which files belong to a policy. What goes from here to services, histories and logs names no file that would have
to be read again.
"""

from pathlib import Path
from typing import NamedTuple

from policies.document.cost_table import SECTION, read_table, table_named, with_table
from policies.document.problems import PolicyError, Problem
from services.files import read_document


class PolicyText(NamedTuple):
    """A policy file and what is in it."""

    source: bytes
    """As it is on the disk."""
    document: bytes
    """Complete; where `problems` says something, only as far as the source goes."""
    files: tuple[Path, ...]
    """The others that belong to it."""
    problems: PolicyError | None = None
    """Why it is not complete."""


def read_text(path: Path) -> PolicyText:
    """A policy file, and what could be read of the others that it names.

    Raises:
        OSError: the policy file itself cannot be read.
    """
    return placed(read_document(path), path)


def read_policy(path: Path) -> bytes:
    """A policy file as one document.

    Raises:
        OSError: it cannot be read.
        PolicyError: a file that it names cannot be read or used.
    """
    text = read_text(path)
    if text.problems is not None:
        raise text.problems
    return text.document


def placed(source: bytes, path: Path) -> PolicyText:
    """The same of a text that is, or will be, in this file."""
    try:
        named = table_named(source, str(path))
    except PolicyError:
        # Whoever loads it is told what is wrong, with all else.
        return PolicyText(source, source, ())
    if named is None:
        return PolicyText(source, source, ())
    file = path.parent / named.name
    try:
        table = read_table(read_document(file), str(file), named.name)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        allowed = "a CSV file, by its path from the policy file"
        problem = Problem(str(path), named.at, SECTION, f"{file} cannot be read: {why}", allowed)
        return PolicyText(source, source, (file,), PolicyError([problem]))
    except PolicyError as error:
        return PolicyText(source, source, (file,), error)
    return PolicyText(source, with_table(source, named, table), (file,))
