"""Starts the services, waits until they serve, starts a crashed or silent one again, stops them in order.

A process that ends too often is given up: if a gateway can still serve without it the others go on, else all end with
status 1 and the reason. Owns processes, their logs and the run folder. Knows nothing of requests, policies' meaning or
tokens.
"""

import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from services.children import Child, Place
from services.control import Caller, Control
from services.crashes import Crashes
from services.files import replace
from services.health import processes, ready_file
from services.loading import LoadingBar, loading_file
from services.rolling import RestartError, Rolling
from services.settings import STARTED, Deployment
from services.setup import Prepared

STOP_LIMIT_S = 10.0
"""How long a process may take to end beyond the time that its readers have."""
POLL_S = 0.05
SETTLE_S = 2.0
"""How long a process may be missing before the gateways know it."""


class Supervisor:
    """The child processes and the order in which they start and stop."""

    def __init__(self, deployment: Deployment, prepared: Prepared, listening: socket.socket) -> None:
        self._deployment = deployment
        self._limits = deployment.supervision
        self._prepared = prepared
        self._listening = listening
        """Where clients connect. Held here and by every gateway: while none accepts, they wait."""
        self._places = {
            name: Place(name, *which, Crashes(self._limits.crashes, self._limits.crash_window_s))
            for name, which in processes(deployment).items()
        }
        self._departing: list[Child] = []
        """Gateways whose successor is at work."""
        self._rolling: tuple[Iterator[str], Caller] | None = None
        self._has_served = False
        self._failed = ""
        self._judge_at_s: float | None = None
        self._loading = LoadingBar(loading_file(deployment.run))
        self._stop = threading.Event()
        self._signals = 0

    def run(self) -> int:
        """Start, watch, stop."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        print(self._prepared.model_line, flush=True)
        _write_deployment(self._deployment)
        self._clear()
        control = Control(self._deployment.run)
        try:
            self._watch(control)
        finally:
            control.close()
            self._loading.close()
            self._stop_all()
            shutil.rmtree(self._deployment.run, ignore_errors=True)
        if self._failed:
            _say(self._failed)
            return 1
        return 0

    def _on_signal(self, number: int, frame: object) -> None:
        del number, frame
        self._signals += 1
        self._stop.set()
        if self._signals > 1:
            # The second Ctrl-C of somebody who does not want to wait for the readers.
            for child in self._children():
                child.kill("was to end at once")
        else:
            print("\nfairlead: draining; once more to stop at once", file=sys.stderr, flush=True)

    def _children(self) -> list[Child]:
        found = [child for place in self._places.values() for child in (place.child, place.successor)]
        return [child for child in (*found, *self._departing) if child is not None]

    def _log(self, name: str) -> Path:
        return Path(self._deployment.data) / "logs" / f"{name}.log"

    def _clear(self) -> None:
        """Each start writes new logs; those of the start before stay beside them. Nobody is ready yet."""
        for name in self._places:
            log = self._log(name)
            log.parent.mkdir(exist_ok=True)
            if log.exists():
                log.replace(log.with_suffix(".log.1"))
            ready_file(self._deployment.run, name).unlink(missing_ok=True)

    def _begin(self, place: Place) -> Child:
        gateway = place.service == "gateway"
        descriptors = [self._listening.fileno()] if gateway else []
        return Child(
            place.name,
            [
                place.service,
                *(["--replica", str(place.replica + 1)] if place.replica else []),
                *(f"--socket={descriptor}" for descriptor in descriptors),
            ],
            log=self._log(place.name),
            deployment=_deployment_file(self._deployment),
            descriptors=descriptors,
        )

    # --- watching -------------------------------------------------------------------------------------------------

    def _watch(self, control: Control) -> None:
        """Until it is told to stop, or nothing can be served any more."""
        began_s = before_s = time.monotonic()
        while not self._failed:
            now = time.monotonic()
            for place in self._places.values():
                self._attend(place, now, now - before_s)
            for child in tuple(self._departing):
                if self._has_left(child, now):
                    self._departing.remove(child)
            self._judge(now)
            self._answer(control)
            if not self._has_served:
                self._starting(now - began_s)
            before_s = now
            if self._stop.wait(POLL_S):
                return

    def _attend(self, place: Place, now: float, elapsed_s: float) -> None:
        child = place.child
        if child is None:
            if not place.given_up and now >= place.start_at_s:
                try:
                    place.child = self._begin(place)
                except OSError as error:
                    # No process, no descriptor, no log: that may pass, as what makes a process end may.
                    self._crashed(place, f"it cannot be started: {error}", now)
            return
        if child.status is not None:
            child.bury()
            place.child, place.successor = place.successor, None
            if child.leaving_s is None and place.child is None:
                status = child.status
                if not self._has_served and status is not None and status >= 0:
                    # Nothing has worked yet, and it says why: to try again would only hide the sentence.
                    self._failed = f"{place.name} ended while starting: {child.last_words}"
                else:
                    self._crashed(place, child.last_words, now)
            return
        child.look(elapsed_s)
        limit_s = self._limits.silence_s if child.pulse.num_beats else self._limits.start_s
        if child.pulse.silent_s > limit_s:
            _say(f"{place.name} has given no sign of life for {limit_s:g} s: it is stopped or stuck; killing it")
            child.kill(f"gave no sign of life for {limit_s:g} s")
        else:
            self._has_left(child, now)

    def _has_left(self, child: Child, now: float) -> bool:
        """Whether a child that was asked to leave has; one that takes too long is killed."""
        if child.status is not None:
            child.bury()
            return True
        limit_s = self._leave_s
        if child.leaving_s is not None and now - child.leaving_s > limit_s:
            _say(f"{child.name} did not end within {limit_s:g} s; killing it")
            child.kill(f"did not end within {limit_s:g} s")
        return False

    @property
    def _leave_s(self) -> float:
        return STOP_LIMIT_S + self._deployment.http.drain_s

    def _crashed(self, place: Place, last_words: str, now: float) -> None:
        """It ended by itself."""
        pause_s = place.crashes.pause_s(now)
        if pause_s is not None:
            again = f" in {pause_s:g} s" if pause_s else ""
            _say(f"{place.name} ended: {last_words}; starting it again{again}")
            place.start_at_s = now + pause_s
            return
        place.given_up = (
            f"{place.name} ended {place.crashes.count} times within {self._limits.crash_window_s:g} s and is not "
            f"started again; the last time: {last_words}"
        )
        _say(place.given_up)
        # The others hear of it by their streams: only then do they say whether they can do without.
        self._judge_at_s = now + SETTLE_S

    def _judge(self, now: float) -> None:
        """Whether anything can be served without what was given up: a gateway knows."""
        if self._judge_at_s is None or now < self._judge_at_s:
            return
        self._judge_at_s = None
        lost = [place for place in self._places.values() if place.given_up]
        names = ", ".join(place.name for place in lost)
        if any(place.is_ready for place in self._places.values() if place.service == "gateway"):
            _say(f"the others serve without {names}; `fairlead restart {names.replace(',', '')}` tries again")
        elif lost:
            sentences = "; ".join(place.given_up for place in lost)
            self._failed = f"nothing can be served without {names}: {sentences}"

    def _starting(self, for_s: float) -> None:
        missing = [place.name for place in self._places.values() if not place.is_ready]
        if sys.stderr.isatty() and not self._loading.look():
            text = f"waiting for {', '.join(missing)}" if missing else ""
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        if not missing:
            self._loading.close()
            http = self._deployment.http
            executor = self._places["executor"].child
            print((executor and executor.about) or "", end="", flush=True)
            print(self._prepared.welcome(self._deployment, f"http://{http.host}:{http.port}"), flush=True)
            self._has_served = True
        elif for_s > self._limits.start_s:
            logs = f"{self._deployment.data}/logs"
            self._failed = f"{', '.join(missing)} not ready after {self._limits.start_s:g} s; logs: {logs}"

    # --- starting again, when asked -------------------------------------------------------------------------------

    def _answer(self, control: Control) -> None:
        for caller, asked in control.questions():
            known = {name for place in self._places.values() for name in (place.name, place.service)}
            unknown = [name for name in asked.restart if name not in known]
            if unknown:
                caller.say(f"there is no {unknown[0]} here; there are: {', '.join(self._places)}", "failed")
                caller.close()
            elif self._rolling is not None or not self._has_served:
                caller.say("services are being started just now; ask again when they are ready", "failed")
                caller.close()
            else:
                wanted = [
                    place
                    for place in self._places.values()
                    if not asked.restart or place.name in asked.restart or place.service in asked.restart
                ]
                rolling = Rolling(
                    list(self._places.values()),
                    self._begin,
                    self._departing,
                    start_s=self._limits.start_s,
                    leave_s=self._leave_s,
                )
                self._rolling = rolling.steps(wanted), caller
        if self._rolling is None:
            return
        steps, caller = self._rolling
        try:
            line = next(steps, None)
        except RestartError as error:
            _say(str(error))
            caller.say(str(error), "failed")
        else:
            if line:
                _say(line)
                caller.say(line)
            if line is not None:
                return
            caller.say("restarted", "done")
        caller.close()
        self._rolling = None

    # --- stopping -------------------------------------------------------------------------------------------------

    def _stop_all(self) -> None:
        """Gateways first: their readers finish while the others still work for them. Who connects now is refused."""
        self._listening.close()
        children = [child for child in self._children() if child.status is None]
        services = list(dict.fromkeys(place.service for place in self._places.values()))
        for service in reversed(services):
            now = time.monotonic()
            of_service = [child for child in children if self._places[child.name].service == service]
            for child in of_service:
                if child.leaving_s is None:
                    child.leave(now, signal.SIGTERM)
            while of_service:
                of_service = [child for child in of_service if not self._has_left(child, time.monotonic())]
                time.sleep(POLL_S)


def _say(line: str) -> None:
    print(f"fairlead: {line}", file=sys.stderr, flush=True)


def _deployment_file(deployment: Deployment) -> Path:
    return Path(deployment.run) / "deployment.json"


def _write_deployment(deployment: Deployment) -> None:
    """JSON is YAML: the children read it with the same loader, and so do the commands given the data folder."""
    content = msgspec.json.encode(deployment)
    _deployment_file(deployment).write_bytes(content)
    replace(Path(deployment.data) / STARTED, content)
