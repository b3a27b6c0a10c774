"""`fairlead policy diff A [B]`: what changes from one policy to another, in words."""

import argparse

from policies.document.diff import changes
from services import policy_documents
from services.settings import Deployment

WHAT = "a policy document or the number of a revision"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("first", metavar="A", help=f"{WHAT}; alone, the policy in force is compared with it")
    parser.add_argument("second", nargs="?", metavar="B", help=WHAT)
    policy_documents.add_data_dir(parser)


def run(args: argparse.Namespace) -> int:
    """One line a change to stdout and 0, or one line a problem to stderr and 2."""
    return policy_documents.run(args, _diff)


def _diff(deployment: Deployment, args: argparse.Namespace) -> int:
    given = policy_documents.from_name(args.first, deployment)
    if args.second is None:
        old, new = policy_documents.in_force(deployment), given
    else:
        old, new = given, policy_documents.from_name(args.second, deployment)
    print(f"from {old.label} ({old.policy.name}) to {new.label} ({new.policy.name}):")
    print("\n".join(changes(old.policy, new.policy)) or "nothing changes")
    return 0
