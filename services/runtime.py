"""What every service process does: run, log, say when it is ready, drain on a signal.

A crash of any callback is logged and ends the process with status 1: a service that goes on after losing an event
would be wrong in silence. Knows no message and no policy.
"""

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import uvloop

from services.descriptors import Descriptors
from services.epochs import first_epoch
from services.files import exposure, read_document
from services.health import ready_file
from services.hearing import HEARS, Hearing
from services.lines import Entries, Lines
from services.pulse import BEAT_S, Pulse
from services.settings import Deployment
from services.streams import Stream
from services.ticking import Ticker
from services.tls import Certificates
from services.transport import AddressError, Identity, Link, Listener, Receiver, listen

READY_CHECK_S = 0.05
SHORTEST_SECRET_BYTES = 16
PR_SET_PDEATHSIG = 1
STOP_S = 10.0
"""How long closing everything may take: nothing that is done for readers is left by then."""

log = logging.getLogger(__name__)


class StartError(Exception):
    """A service cannot start; the sentence says what is wrong, where, and what is right."""


class Service(Protocol):
    """What `serve` runs."""

    name: str

    async def start(self) -> None:
        """Open what others connect to and begin to connect; raises `StartError` or `AddressError`."""

    def not_ready(self) -> str:
        """What is still missing before work can be done; empty when ready."""

    async def drain(self) -> None:
        """Return when the work in hand is done, or the limit has passed; the gateway takes no new one meanwhile, the
        others what comes: whoever sends it has nobody else.
        """

    async def stop(self) -> None:
        """Close everything."""


def serve(service: Service, run_folder: Path, pulse: int | None = None) -> int:
    """Run a service until SIGTERM or SIGINT; a SIGINT after that cuts the drain short, SIGUSR1 leaves it out. `pulse`:
    the pipe for its signs of life.

    While it is ready, `{run}/{name}.ready` exists and holds its process id. Returns the process's exit status: 1 when
    it could not start or a callback crashed.
    """
    ready = ReadyFile(run_folder, service.name)
    return uvloop.run(_serve(service, ready, Pulse(ready.path, pulse)))


class ReadyFile:
    """The file that tells the supervisor and health checks that a service can do its work.

    Attributes:
        about: lines for whoever started the services, under the process id.
    """

    def __init__(self, run_folder: Path, service: str) -> None:
        self.about = ""
        self.path = ready_file(str(run_folder), service)
        self._said: str | None = None
        self._failing = False
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.remove()
        except OSError as error:
            raise StartError(
                f"{run_folder}: the folder of the running processes cannot be used: {error.strerror}; "
                "name another with `run:` in the deployment file"
            ) from error

    def update(self, missing: str) -> None:
        """Make or remove the file; `missing` says what is not there yet, empty when ready."""
        if missing == self._said:
            return
        try:
            if missing:
                self.remove()
            else:
                # Renamed into place: whoever sees the file reads all of it.
                beside = self.path.with_suffix(".new")
                beside.write_text(f"{os.getpid()}\n{self.about}\n")
                beside.replace(self.path)
        except OSError as error:
            # Tried again at the next look: this process serves, and only those who look at the file do not know.
            if not self._failing:
                log.error("%s cannot be written: %s; it is tried again", self.path, error.strerror)  # noqa: TRY400
            self._failing = True
            return
        self._failing = False
        self._said = missing
        log.info("%s", f"not ready: {missing}" if missing else "ready")

    def remove(self) -> None:
        """Not ready (any more). A file of another living process stays: it drains, or has taken this one's place."""
        with contextlib.suppress(FileNotFoundError):
            owner = self.path.read_text().split()[:1]
            if not (owner and _is_another(owner[0])):
                self.path.unlink()


def _is_another(pid: str) -> bool:
    if not pid.isdecimal() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


async def _serve(service: Service, ready: ReadyFile, pulse: Pulse) -> int:
    loop = asyncio.get_running_loop()
    terminated, killed = asyncio.Event(), asyncio.Event()
    status = 0

    def on_interrupt() -> None:
        (killed if terminated.is_set() else terminated).set()

    def on_crash(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal status
        error = context.get("exception")
        if error is None or (isinstance(error, OSError) and "transport" in context):
            log.warning("%s: %s", context["message"], error)
            return
        log.critical("%s; this process ends", context["message"], exc_info=error)
        status = 1
        terminated.set()
        killed.set()

    loop.set_exception_handler(on_crash)

    def on_hand_over() -> None:
        terminated.set()
        killed.set()

    # However often: whoever stops a whole group sends it beside our supervisor, and of a supervisor's end both the
    # kernel and the pulse tell. Only a person presses Ctrl-C twice.
    loop.add_signal_handler(signal.SIGTERM, terminated.set)
    loop.add_signal_handler(signal.SIGINT, on_interrupt)
    loop.add_signal_handler(signal.SIGUSR1, on_hand_over)
    descriptors = Descriptors()

    def beat() -> None:
        pulse.beat()
        descriptors.look()

    heart = Ticker(BEAT_S, beat)
    try:
        await service.start()
    except (StartError, AddressError) as error:
        log.error("%s", error)  # noqa: TRY400  the sentence says it all
        await service.stop()
        return 1
    gc.collect()
    gc.freeze()
    pulse.beat()
    heart.start()
    readiness = loop.create_task(_keep_ready(service, ready))
    # A crash of the task itself would otherwise wait for its result to be asked for.
    readiness.add_done_callback(lambda task: task.cancelled() or task.result())
    await terminated.wait()
    readiness.cancel()
    with contextlib.suppress(OSError):
        ready.remove()
    log.info("draining")
    drained = loop.create_task(service.drain())
    cut_short = loop.create_task(killed.wait())
    await asyncio.wait([drained, cut_short], return_when=asyncio.FIRST_COMPLETED)
    for task in (drained, cut_short):
        task.cancel()
    stopping = loop.create_task(service.stop())
    _, late = await asyncio.wait([stopping], timeout=STOP_S)
    if late:
        # Of a service that crashed anything may be broken. What a thread of it waits for is the supervisor's matter,
        # who hears nothing of this process from now on.
        log.error("it cannot be closed within %g s; this process ends as it is", STOP_S)
        status = 1
    else:
        stopping.result()
    heart.close()
    log.info("stopped")
    return status


async def until_so(holds: Callable[[], bool], limit_s: float) -> None:
    """Return when this holds, or after `limit_s`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            while not holds():  # noqa: ASYNC110  cores count and neighbours come: neither tells
                await asyncio.sleep(READY_CHECK_S)


async def _keep_ready(service: Service, ready: ReadyFile) -> None:
    while True:
        ready.update(service.not_ready())
        await asyncio.sleep(READY_CHECK_S)


def set_up_logging(service: str) -> None:
    """One line an entry on stderr: time, level, service, what happened."""

    def lost(num_lines: int) -> str:
        return f"{time.strftime('%H:%M:%S')} WARNING {service}: {num_lines} lines before this one could not be written"

    written = Lines(sys.stderr.fileno(), lost)
    written.setFormatter(Entries(f"%(asctime)s.%(msecs)03d %(levelname)s {service}: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[written], force=True)


def die_with_parent() -> None:
    """Ask the kernel for a SIGTERM when the supervisor dies, however it dies (Linux; elsewhere nothing)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def read_secret(deployment: Deployment) -> bytes:
    """The secret that both ends of every stream must know.

    Raises:
        StartError: it cannot be read, or is too short to be one.
    """
    path = deployment.streams.secret_file
    try:
        if why := exposure(Path(path)):
            raise StartError(why)
        secret = read_document(Path(path))
    except OSError as error:
        raise StartError(
            f"{path}: the secret of the streams cannot be read: {error.strerror}; `fairlead up` makes one"
        ) from error
    if len(secret) < SHORTEST_SECRET_BYTES:
        raise StartError(
            f"{path}: the secret of the streams has {len(secret)} bytes, at least {SHORTEST_SECRET_BYTES} are needed; "
            "remove the file and `fairlead up` makes one"
        )
    return secret


def certificates_of(deployment: Deployment) -> Certificates | None:
    """What encrypts the streams between machines; None: nothing does. Raises `StartError`."""
    try:
        return None if deployment.streams.tls is None else Certificates(deployment.streams.tls)
    except AddressError as error:
        raise StartError(str(error)) from error


async def open_listener(
    deployment: Deployment, address: str, service: str, receiver: Receiver, instance: str = "0"
) -> Listener:
    """Listen with the deployment's secret and limits; raises `StartError` or `AddressError`."""
    streams = deployment.streams
    return await listen(
        address,
        Identity(service, instance, first_epoch(deployment.data, service, instance)),
        read_secret(deployment),
        Hearing(service, receiver),
        max_frame_bytes=streams.max_frame_bytes,
        buffer_bytes=streams.buffer_bytes,
        silence_s=streams.silence_s,
        certificates=certificates_of(deployment),
        allow_plaintext=streams.allow_plaintext,
    )


def open_link(deployment: Deployment, address: str, identity: Identity, receiver: Receiver) -> Link:
    """A started link with the deployment's secret and limits; raises `StartError` or `AddressError`."""
    streams = deployment.streams
    link = Link(
        address,
        identity,
        read_secret(deployment),
        Hearing(identity.service, receiver) if identity.service in HEARS else receiver,
        max_frame_bytes=streams.max_frame_bytes,
        buffer_bytes=streams.buffer_bytes,
        silence_s=streams.silence_s,
        certificates=certificates_of(deployment),
        allow_plaintext=streams.allow_plaintext,
    )
    link.start()
    return link


def describe(stream: Stream) -> str:
    """A stream's peer in words."""
    return f"{stream.peer.service} {stream.peer.instance}"


def gateway_number(stream: Stream) -> int | None:
    """Which gateway is at the other end; None if the peer is no gateway, or one without a number."""
    peer = stream.peer
    return int(peer.instance) if peer.service == "gateway" and peer.instance.isdecimal() else None
