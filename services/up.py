"""`fairlead up`: the options of the command, the data folder's lock and the port; the supervisor does the rest."""

import argparse
import contextlib
import fcntl
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from services.descriptors import TooFewError, raise_limit
from services.listening import bind
from services.settings import Deployment, SettingsError, load_deployment
from services.setup import SetupError, prepare
from services.supervisor import Supervisor

LONGEST_SOCKET_PATH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fairlead up`; each overrides its key of the deployment file."""
    parser.add_argument("--policy", help="policy file; edit it while it runs")
    parser.add_argument("--model", help="Hugging Face checkpoint folder, or demo")
    parser.add_argument("--port", type=int, help="HTTP port; 0: any free one")
    parser.add_argument("--data-dir", help="folder of keys, secrets and logs")
    parser.add_argument("--record", metavar="DIR", help="write the event logs of both cores")
    parser.add_argument("--check", action="store_true", help="assert every invariant of both cores after every event")
    parser.add_argument("--deployment", type=Path, help="deployment file (default: ops/deployment.yaml)")
    parser.add_argument("--prepare", action="store_true", help="make what is needed to start, then exit")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted. Exit status 2: it could not start as asked; 1: a service failed."""
    try:
        raise_limit()
        deployment = _deployment(args)
        with _lock(Path(deployment.data)):
            prepared = prepare(deployment)
            if args.prepare:
                return 0
            with _listening(deployment) as listening:
                http = msgspec.structs.replace(deployment.http, port=listening.getsockname()[1])
                return Supervisor(msgspec.structs.replace(deployment, http=http), prepared, listening).run()
    except (SettingsError, SetupError, TooFewError) as error:
        print(f"fairlead: {error}", file=sys.stderr)
    except OSError as error:
        # Of the supervisor's own files and sockets; a service's troubles are its own.
        print(f"fairlead: {error.filename or args.data_dir or 'the data folder'}: {error.strerror}", file=sys.stderr)
    return 2


def _deployment(args: argparse.Namespace) -> Deployment:
    deployment = load_deployment(args.deployment)
    overrides = {"policy": args.policy, "model": args.model, "data": args.data_dir, "record": args.record}
    given = {
        # A path on the command line starts at the caller's folder, one in the file at the repository.
        key: value if (key, value) == ("model", "demo") else str(Path(value).expanduser().absolute())
        for key, value in overrides.items()
        if value is not None
    }
    http = deployment.http
    if args.port is not None:
        if not 0 <= args.port <= 65535:
            raise SettingsError(f"--port {args.port}: a port is between 0 and 65535")
        http = msgspec.structs.replace(http, port=args.port)
    deployment = msgspec.structs.replace(
        deployment, http=http, check=deployment.check or args.check, **given
    ).resolved()
    if len(deployment.run) + len("/supervisor.sock") > LONGEST_SOCKET_PATH:
        # The kernel bounds a Unix socket's path at 108 bytes.
        deployment = msgspec.structs.replace(
            deployment,
            run=tempfile.mkdtemp(prefix="fairlead-"),
            streams=load_deployment(args.deployment).streams,
        ).resolved()
    return deployment


@contextlib.contextmanager
def _lock(data: Path) -> Iterator[None]:
    """Hold the data folder for this process alone."""
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(data / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise SetupError(f"data folder {data}: {error.strerror}; name another with --data-dir") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise SetupError(
            f"data folder {data} is in use by another `fairlead up`; name another with --data-dir"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def _listening(deployment: Deployment) -> socket.socket:
    """Where clients connect, whichever gateway accepts them."""
    http = deployment.http
    try:
        return bind(http)
    except OSError as error:
        raise SetupError(
            f"cannot listen on {http.host}:{http.port}: {error.strerror}; choose another with --port"
        ) from error
