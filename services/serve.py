"""`fairlead serve NAME`: one service in the foreground, of the deployment the environment names."""

import argparse
import importlib
import sys

from services import runtime
from services.health import SERVICES
from services.settings import SettingsError, load_deployment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fairlead serve`."""
    parser.add_argument("service", choices=SERVICES)


def run(args: argparse.Namespace) -> int:
    """Run until told to stop."""
    try:
        deployment = load_deployment().resolved()
    except SettingsError as error:
        print(f"fairlead: {error}", file=sys.stderr)
        return 2
    # Imported by name, so that a gateway's process never loads torch nor an executor's an HTTP server.
    module = importlib.import_module(f"services.{args.service}.service")
    if args.service == "executor":
        status: int = module.main(deployment)
        return status
    return runtime.serve(module.build(deployment))
