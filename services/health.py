"""`fairlead health NAME`: is this service ready? Exit 0 or 1; health checks of containers ask it."""

import argparse
import sys
from pathlib import Path

from services.settings import SettingsError, load_deployment

SERVICES = ("executor", "scheduler", "admission", "gateway")
"""In the order they are started; stopped the other way round."""


def ready_file(run_folder: str, service: str) -> Path:
    """The file a service keeps while it is ready."""
    return Path(run_folder) / f"{service}.ready"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fairlead health`."""
    parser.add_argument("service", choices=SERVICES)


def run(args: argparse.Namespace) -> int:
    """0 when the service of the environment's deployment is ready."""
    try:
        deployment = load_deployment().resolved()
    except SettingsError as error:
        print(f"fairlead: {error}", file=sys.stderr)
        return 2
    if ready_file(deployment.run, args.service).exists():
        return 0
    print(f"{args.service} is not ready", file=sys.stderr)
    return 1
