"""`fairlead serve NAME`: one service in the foreground, of the deployment the environment names."""

import argparse
import importlib
import os
import resource
import socket
import sys
from pathlib import Path
from typing import Any

from engine.malloc import give_back_freed_memory
from services import runtime
from services.descriptors import TooFewError, raise_limit
from services.files import keep_private
from services.health import SERVICES, process_name, processes
from services.settings import SettingsError, load_deployment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fairlead serve`."""
    parser.add_argument("service", choices=SERVICES)
    parser.add_argument("--replica", type=int, default=1, metavar="N", help="which of several (default: the first)")
    parser.add_argument(
        "--pulse",
        type=int,
        metavar="FD",
        help="where to give a sign of life each second; ends when the process that started this one dies",
    )
    parser.add_argument(
        "--socket", type=int, metavar="FD", help="the listening socket of a gateway, given by what started it"
    )


def run(args: argparse.Namespace) -> int:
    """Run until told to stop. Exit status 2: the deployment cannot be used; 1: the service failed."""
    # A dump would hold prompts, answers and secrets.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    keep_private()
    if args.pulse is not None:
        runtime.die_with_parent()
    for descriptor in (args.pulse, args.socket):
        if descriptor is not None:
            # A process of this one's own would hold them: a port that nobody accepts on any more would go on listening.
            os.set_inheritable(descriptor, False)
    name = process_name(args.service, args.replica - 1)
    runtime.set_up_logging(name)
    try:
        raise_limit()
        deployment = load_deployment().resolved()
        if name not in processes(deployment):
            raise SettingsError(
                f"--replica {args.replica}: the deployment has no {name}; see streams.admission, http.gateways"
            )
        # Imported by name, so that a gateway's process never loads torch nor an executor's an HTTP server.
        module = importlib.import_module(f"services.{args.service}.service")
        if args.service == "executor":
            status: int = module.main(deployment, args.pulse)
            return status
        give_back_freed_memory()
        arguments: list[Any] = [args.replica - 1] if args.replica > 1 or args.socket is not None else []
        if args.socket is not None:
            arguments.append(socket.socket(fileno=args.socket))
        return runtime.serve(module.build(deployment, *arguments), Path(deployment.run), args.pulse)
    except (SettingsError, TooFewError, runtime.StartError) as error:
        print(f"fairlead {args.service}: {error}", file=sys.stderr)
        return 2
