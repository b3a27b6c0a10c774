"""`fairlead policy cost-table FILE`: a measured cost profile as the table of a policy.

A policy may name the file itself (`cost: {kind: table, file: ...}`). This writes its points, for a policy that is to be
one file.
"""

import argparse
import sys
from pathlib import Path

from policies.document.cost_table import COLUMNS, read_table
from policies.document.fairness import ReadTable
from policies.document.problems import PolicyError
from services.files import read_document


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "file", type=Path, metavar="FILE", help=f"CSV with the columns {', '.join(COLUMNS)}; a row for each point"
    )


def run(args: argparse.Namespace) -> int:
    """The section `fairness` to stdout and 0, or what is wrong with the file to stderr and 2."""
    path: Path = args.file
    try:
        table = read_table(read_document(path), str(path), path.name)
    except OSError as error:
        print(f"{path}: cannot be read: {error.strerror}", file=sys.stderr)
        return 2
    except PolicyError as error:
        print(error, file=sys.stderr)
        return 2
    print(section_of(table), end="")
    return 0


def section_of(table: ReadTable) -> str:
    """The section `fairness` of a policy that goes by these costs."""
    rows = [", ".join(f"{cost:.9g}" for cost in row) for row in table.costs]
    lines = [
        "fairness:",
        "  cost:",
        "    kind: table",
        f"    prompt_tokens: [{', '.join(map(str, table.prompt_tokens))}]",
        f"    output_tokens: [{', '.join(map(str, table.output_tokens))}]",
        "    costs:",
        *(f"      - [{row}]" for row in rows),
    ]
    return "\n".join(lines) + "\n"
