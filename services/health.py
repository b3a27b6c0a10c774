"""`fairlead health NAME`: is this service ready, and alive? Exit 0 or 1; health checks of containers ask it."""

import argparse
import sys
from pathlib import Path

from services.pulse import age_s
from services.settings import Deployment, SettingsError, load_deployment

SERVICES = ("executor", "scheduler", "admission", "gateway")
"""In the order they are started; stopped the other way round."""


def process_name(service: str, replica: int) -> str:
    """What a process is called, in logs and by its ready file: the first of a service as the service."""
    return f"{service}-{replica + 1}" if replica else service


def processes(deployment: Deployment) -> dict[str, tuple[str, int]]:
    """All processes by name, with their service and which of it they are, in the order they are started."""
    several = {"admission": len(deployment.streams.admissions), "gateway": deployment.http.gateways}
    return {
        process_name(service, replica): (service, replica)
        for service in SERVICES
        for replica in range(several.get(service, 1))
    }


def ready_file(run_folder: str, service: str) -> Path:
    """The file a service keeps while it is ready."""
    return Path(run_folder) / f"{service}.ready"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fairlead health`."""
    parser.add_argument("service", choices=SERVICES)
    parser.add_argument("--replica", type=int, default=1, metavar="N", help="which of several (default: the first)")


def run(args: argparse.Namespace) -> int:
    """0 when the service of the environment's deployment is ready."""
    try:
        deployment = load_deployment().resolved()
    except SettingsError as error:
        print(f"fairlead: {error}", file=sys.stderr)
        return 2
    name = process_name(args.service, args.replica - 1)
    try:
        silent_s = age_s(ready_file(deployment.run, name))
    except OSError as error:
        print(f"fairlead: {error.filename}: cannot be looked at: {error.strerror}", file=sys.stderr)
        return 1
    if silent_s is None:
        print(f"{name} is not ready", file=sys.stderr)
        return 1
    if silent_s > deployment.supervision.silence_s:
        print(f"{name} was ready and has given no sign of life for {silent_s:.0f} s", file=sys.stderr)
        return 1
    return 0
