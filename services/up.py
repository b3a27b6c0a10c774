"""`fairlead up`: the options of the command, the data folder's lock and the port; the supervisor does the rest."""

import argparse
import contextlib
import fcntl
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from services.control import ControlError
from services.descriptors import TooFewError, raise_limit
from services.files import keep_private
from services.listening import bind
from services.settings import Deployment, SettingsError, load_deployment
from services.setup import SetupError, prepare
from services.supervisor import STOP_LIMIT_S, Given, Supervisor

LONGEST_SOCKET_PATH = 100
LOOK_S = 0.1


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
    keep_private()
    try:
        raise_limit()
        deployment = _deployment(args, lambda: tempfile.mkdtemp(prefix="fairlead-"))
        with _lock(Path(deployment.data)):
            prepared = prepare(deployment)
            if args.prepare:
                return 0
            limit_s = STOP_LIMIT_S + deployment.http.drain_s
            with _alone(Path(deployment.data), limit_s) as held, _listening(deployment) as listening:
                port = listening.getsockname()[1]

                def read() -> Deployment:
                    return _on_port(_deployment(args, lambda: deployment.run), port)

                return Supervisor(_on_port(deployment, port), prepared, Given(listening, held, read)).run()
    except (SettingsError, SetupError, TooFewError, ControlError) as error:
        print(f"fairlead: {error}", file=sys.stderr)
    except OSError as error:
        # Of the supervisor's own files and sockets; a service's troubles are its own.
        print(f"fairlead: {error.filename or args.data_dir or 'the data folder'}: {error.strerror}", file=sys.stderr)
    return 2


def _on_port(deployment: Deployment, port: int) -> Deployment:
    """The same with the port that was found where it leaves that open."""
    http = msgspec.structs.replace(deployment.http, port=deployment.http.port or port)
    return msgspec.structs.replace(deployment, http=http)


def _deployment(args: argparse.Namespace, short_folder: Callable[[], str]) -> Deployment:
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
            run=short_folder(),
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
        if not _locked(descriptor):
            raise SetupError(f"data folder {data} is in use by another `fairlead up`; name another with --data-dir")
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _alone(data: Path, limit_s: float) -> Iterator[int]:
    """Wait until no service of an earlier `fairlead up` is left, and hold that for the services of this one, which are
    given the descriptor: one that was killed leaves them to finish what their readers wait for.
    """
    descriptor = os.open(data / "services.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + limit_s
        told = False
        while not _locked(descriptor):
            if not told:
                told = True
                print(
                    f"fairlead: services of a `fairlead up` that was killed still finish their requests on {data}; "
                    f"waiting for them, {limit_s:g} s at most",
                    file=sys.stderr,
                    flush=True,
                )
            if time.monotonic() > deadline:
                raise SetupError(
                    f"services of a `fairlead up` that was killed still run on data folder {data}; end them "
                    "(`pgrep -f 'services.cli serve'` shows them), or name another with --data-dir"
                )
            time.sleep(LOOK_S)
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _listening(deployment: Deployment) -> socket.socket:
    """Where clients connect, whichever gateway accepts them."""
    http = deployment.http
    try:
        return bind(http)
    except OSError as error:
        raise SetupError(
            f"cannot listen on {http.host}:{http.port}: {error.strerror}; choose another with --port"
        ) from error
