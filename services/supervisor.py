"""`fairlead up`: starts the services, waits until they serve, starts a crashed one again, stops them in order.

Owns processes, their logs and the run folder. Knows nothing of requests, policies' meaning or tokens.
"""

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec

from services.files import replace
from services.health import processes, ready_file
from services.listening import bind
from services.settings import REPOSITORY, STARTED, Deployment, SettingsError, child_environment, load_deployment
from services.setup import Prepared, SetupError, prepare

LONGEST_SOCKET_PATH = 100
START_LIMIT_S = 600.0
STOP_LIMIT_S = 10.0
POLL_S = 0.05
CRASH_WINDOW_S = 60.0
CRASHES_ALLOWED = 5
FIRST_BACKOFF_S = 0.2


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
        deployment = _deployment(args)
        with _lock(Path(deployment.data)):
            prepared = prepare(deployment)
            if args.prepare:
                return 0
            with _listening(deployment) as listening:
                http = msgspec.structs.replace(deployment.http, port=listening.getsockname()[1])
                return Supervisor(msgspec.structs.replace(deployment, http=http), prepared, listening).run()
    except (SettingsError, SetupError) as error:
        print(f"fairlead: {error}", file=sys.stderr)
        return 2


class Supervisor:
    """The child processes and the order in which they start and stop."""

    def __init__(self, deployment: Deployment, prepared: Prepared, listening: socket.socket) -> None:
        self._deployment = deployment
        self._prepared = prepared
        self._listening = listening
        """Where clients connect. Held here and by every gateway: while none accepts, they wait."""
        self._processes = processes(deployment)
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._crashes: deque[float] = deque()
        self._stop = threading.Event()
        self._signals = 0

    def run(self) -> int:
        """Start, watch, stop."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        print(self._prepared.model_line, flush=True)
        _write_deployment(self._deployment)
        self._keep_last_logs()
        try:
            for service in self._processes:
                self._start(service)
            failed = self._wait_until_ready()
            if failed is None and not self._stop.is_set():
                http = self._deployment.http
                print(self._about_engine(), end="", flush=True)
                print(self._prepared.welcome(self._deployment, f"http://{http.host}:{http.port}"), flush=True)
                failed = self._watch()
        finally:
            self._stop_all()
            shutil.rmtree(self._deployment.run, ignore_errors=True)
        if failed is not None:
            print(f"fairlead: {failed}", file=sys.stderr)
            return 1
        return 0

    def _on_signal(self, number: int, frame: object) -> None:
        del number, frame
        self._signals += 1
        self._stop.set()
        if self._signals > 1:
            # The second Ctrl-C of somebody who does not want to wait for the readers.
            for child in self._children.values():
                child.kill()
        else:
            print("\nfairlead: draining; once more to stop at once", file=sys.stderr, flush=True)

    def _log(self, service: str) -> Path:
        return Path(self._deployment.data) / "logs" / f"{service}.log"

    def _keep_last_logs(self) -> None:
        """Each start writes new logs; those of the start before stay beside them."""
        for service in self._processes:
            log = self._log(service)
            log.parent.mkdir(exist_ok=True)
            if log.exists():
                log.replace(log.with_suffix(".log.1"))

    def _start(self, service: str) -> None:
        kind, replica = self._processes[service]
        number = ["--replica", str(replica + 1)] if replica else []
        given = [self._listening.fileno()] if kind == "gateway" else []
        number += [f"--socket={descriptor}" for descriptor in given]
        with self._log(service).open("ab") as log:
            self._children[service] = subprocess.Popen(
                [sys.executable, "-m", "services.cli", "serve", kind, *number, "--supervised"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=given,
                # `-m` puts the working folder before the standard library: a caller's `http.py` would be imported.
                cwd=REPOSITORY,
                env=child_environment(_deployment_file(self._deployment)),
                # Its own session: Ctrl-C reaches the supervisor alone, which stops the services in order.
                start_new_session=True,
            )

    def _wait_until_ready(self) -> str | None:
        waiting = list(self._processes)
        deadline = time.monotonic() + START_LIMIT_S
        show = sys.stderr.isatty()
        while waiting and not self._stop.wait(POLL_S):
            for service in tuple(waiting):
                if self._children[service].poll() is not None:
                    return f"{service} ended while starting: {self._last_words(service)}"
                if ready_file(self._deployment.run, service).exists():
                    waiting.remove(service)
            if show:
                text = f"waiting for {', '.join(waiting)}" if waiting else ""
                print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
            if time.monotonic() > deadline:
                return f"{', '.join(waiting)} not ready after {START_LIMIT_S:.0f} s; logs: {self._deployment.data}/logs"
        return None

    def _about_engine(self) -> str:
        """What the executor says of itself; nothing if it has just lost its readiness again."""
        try:
            return ready_file(self._deployment.run, "executor").read_text().partition("\n")[2]
        except FileNotFoundError:
            return ""

    def _watch(self) -> str | None:
        """Until asked to stop: start a crashed service again, with a pause that grows while crashes go on."""
        while not self._stop.wait(POLL_S):
            for service, child in self._children.items():
                if child.poll() is None:
                    continue
                now = time.monotonic()
                self._crashes.append(now)
                while self._crashes[0] < now - CRASH_WINDOW_S:
                    self._crashes.popleft()
                print(f"fairlead: {service} ended: {self._last_words(service)}; starting it again", file=sys.stderr)
                if len(self._crashes) > CRASHES_ALLOWED:
                    return f"{len(self._crashes)} crashes within {CRASH_WINDOW_S:.0f} s; giving up"
                if self._stop.wait(FIRST_BACKOFF_S * 2 ** (len(self._crashes) - 1)):
                    return None
                ready_file(self._deployment.run, service).unlink(missing_ok=True)
                self._start(service)
                break
        return None

    def _stop_all(self) -> None:
        """Gateways first: their readers finish while the others still work for them. Who connects now is refused."""
        self._listening.close()
        for service in reversed(self._processes):
            child = self._children.get(service)
            if child is None or child.poll() is not None:
                continue
            child.terminate()
            limit = STOP_LIMIT_S + (self._deployment.http.drain_s if self._processes[service][0] == "gateway" else 0.0)
            try:
                child.wait(limit)
            except subprocess.TimeoutExpired:
                print(f"fairlead: {service} did not end within {limit:.0f} s; killing it", file=sys.stderr)
                child.kill()
                child.wait()

    def _last_words(self, service: str) -> str:
        log = self._log(service)
        lines = log.read_text(errors="replace").strip().splitlines()
        status = self._children[service].returncode
        return f"{lines[-1] if lines else 'no word in its log'} (status {status}, log {log})"


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
    if len(deployment.run) + len("/scheduler.sock") > LONGEST_SOCKET_PATH:
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


def _deployment_file(deployment: Deployment) -> Path:
    return Path(deployment.run) / "deployment.json"


def _write_deployment(deployment: Deployment) -> None:
    """JSON is YAML: the children read it with the same loader, and so do the commands given the data folder."""
    content = msgspec.json.encode(deployment)
    _deployment_file(deployment).write_bytes(content)
    replace(Path(deployment.data) / STARTED, content)
