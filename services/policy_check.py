"""`fairlead policy check FILE`: everything wrong with a policy file, or what it will do in words."""

import argparse
import sys
from pathlib import Path

from policies.document.explain import explain
from policies.document.loading import load_live_policy, load_policy
from policies.document.problems import PolicyError
from services.policy_reading import read_policy


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--replay", action="store_true", help="allow what only `fairlead replay` can follow")
    parser.add_argument("file", type=Path, metavar="FILE", help="a policy document, such as policies/fairlead.yaml")


def run(args: argparse.Namespace) -> int:
    """Explanation to stdout and 0, or one line a problem to stderr and 2."""
    path: Path = args.file
    try:
        load = load_policy if args.replay else load_live_policy
        policy = load(read_policy(path), str(path))
    except OSError as error:
        print(f"{path}: cannot be read: {error.strerror}", file=sys.stderr)
        return 2
    except PolicyError as error:
        print(error, file=sys.stderr)
        return 2
    print(explain(policy), end="")
    return 0
