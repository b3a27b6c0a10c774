"""`fairlead policy explain [FILE|REVISION]`: what a policy does, in words."""

import argparse

from policies.document.explain import explain
from services import policy_documents
from services.settings import Deployment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "name",
        nargs="?",
        metavar="FILE|REVISION",
        help="a policy document or the number of a revision (the one in force)",
    )
    policy_documents.add_data_dir(parser)


def run(args: argparse.Namespace) -> int:
    """Explanation to stdout and 0, or one line a problem to stderr and 2."""
    return policy_documents.run(args, _explain)


def _explain(deployment: Deployment, args: argparse.Namespace) -> int:
    found = (
        policy_documents.in_force(deployment)
        if args.name is None
        else policy_documents.from_name(args.name, deployment)
    )
    print(f"{found.label}\n{explain(found.policy)}", end="")
    return 0
