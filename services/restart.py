"""`fairlead restart [SERVICE ...]`: start services of a running `fairlead up` again, one process after the other.

Each is ready before the next one's turn, and no request fails: what a service had in hand goes on in its successor.
What was changed in the deployment file since comes into force, or is refused before anything is restarted.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator

from services.control import Asked, ControlError, Said, ask
from services.settings import SettingsError, deployment_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fairlead restart`."""
    parser.add_argument(
        "services",
        nargs="*",
        metavar="SERVICE",
        help="gateway, admission, scheduler, executor, or one process of several, as gateway-2 (default: all)",
    )
    parser.add_argument("--data-dir", help="data folder of the running services")
    parser.epilog = (
        "A service that is started again takes what the deployment file of `fairlead up` says now, the others when "
        "they are started next. What all must have alike (addresses, the port, how many processes, the model, the "
        "store) is refused by name before anything is restarted. If a service does not start with its new settings, "
        "they are taken back."
    )


def run(args: argparse.Namespace) -> int:
    """0 when all are ready again; 1: one was not; 2: there is no such service, or nobody to ask."""
    try:
        answer = list(_shown(ask(deployment_of(args.data_dir).run, Asked(args.services))))
    except (SettingsError, ControlError) as error:
        print(f"fairlead: {error}", file=sys.stderr)
        return 2
    return 1 if answer[-1].state == "failed" else 0


def _shown(answer: Iterable[Said]) -> Iterator[Said]:
    for said in answer:
        if sys.stderr.isatty():
            print(f"\r\033[K{said.awaited}", end="", file=sys.stderr, flush=True)
        if said.awaited:
            continue
        print(said.line, file=sys.stderr if said.state == "failed" else sys.stdout, flush=True)
        yield said
