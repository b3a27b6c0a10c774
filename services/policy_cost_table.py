"""`fairlead policy cost-table FILE`: a measured cost profile as the table of a policy.

A policy is one document, which travels to services and into histories as it is, so the points of a table stand in it.
This writes them.
"""

import argparse
import csv
import sys
from collections.abc import Iterable
from pathlib import Path

from policies.document.loading import load_policy
from policies.document.problems import PolicyError

COLUMNS = ("prompt_tokens", "output_tokens", "cost")
REST = """version: 1
name: table
classes: [{name: all, ttft_s: 1, tbt_s: 1}]
batching: {stages: [{decode: {}}, {prefill: {from: waiting}}]}
"""
"""What a policy must have beside its costs."""

Point = tuple[int, int]


class ProfileError(Exception):
    """A profile of which no table can be made; `str()` says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "file", type=Path, metavar="FILE", help=f"CSV with the columns {', '.join(COLUMNS)}; a row for each point"
    )


def run(args: argparse.Namespace) -> int:
    """The section `fairness` to stdout and 0, or what is wrong with the file to stderr and 2."""
    path: Path = args.file
    try:
        section = section_of(costs_of(path.read_text(encoding="utf-8-sig").splitlines()))
        load_policy((REST + section).encode(), "the table")
    except OSError as error:
        print(f"{path}: cannot be read: {error.strerror}", file=sys.stderr)
        return 2
    except (UnicodeDecodeError, ProfileError, PolicyError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 2
    print(section, end="")
    return 0


def costs_of(lines: Iterable[str]) -> dict[Point, float]:
    """Cost by (prompt tokens, output tokens).

    Raises:
        ProfileError: a column is missing, a row has no numbers, or a point is there twice.
    """
    rows = csv.DictReader(lines)
    missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise ProfileError(f"the column {missing[0]} is missing; the first line names {', '.join(COLUMNS)}")
    costs: dict[Point, float] = {}
    for row in rows:
        try:
            point, cost = (int(row["prompt_tokens"]), int(row["output_tokens"])), float(row["cost"])
        except (TypeError, ValueError) as error:
            raise ProfileError(f"line {rows.line_num} has no two whole numbers of tokens and a cost") from error
        if point in costs:
            raise ProfileError(f"line {rows.line_num} repeats {point[0]} prompt and {point[1]} output tokens")
        costs[point] = cost
    return costs


def section_of(costs: dict[Point, float]) -> str:
    """The section `fairness` of a policy that goes by these costs.

    Raises:
        ProfileError: a pair of lengths has no cost.
    """
    prompts, outputs = (sorted({point[axis] for point in costs}) for axis in (0, 1))
    for prompt in prompts:
        for output in outputs:
            if (prompt, output) not in costs:
                raise ProfileError(f"{prompt} prompt and {output} output tokens have no cost; every pair needs one")
    rows = [", ".join(f"{costs[prompt, output]:.9g}" for output in outputs) for prompt in prompts]
    lines = [
        "fairness:",
        "  cost:",
        "    kind: table",
        f"    prompt_tokens: [{', '.join(map(str, prompts))}]",
        f"    output_tokens: [{', '.join(map(str, outputs))}]",
        "    costs:",
        *(f"      - [{row}]" for row in rows),
    ]
    return "\n".join(lines) + "\n"
