"""Starts the services, waits until they serve, starts a crashed or silent one again, stops them in order.

A process that ends too often is given up: if a gateway can still serve without it the others go on, else all end with
status 1 and the reason. Owns processes, their logs and the run folder. Knows nothing of requests, policies' meaning or
tokens.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from services.children import Child, Place
from services.control import Control
from services.crashes import Crashes
from services.health import processes, ready_file
from services.lines import Lines
from services.listening import bound_waits
from services.loading import LoadingBar, loading_file
from services.pulse import BEAT_S
from services.restarts import Restarts
from services.run_folder import deployment_file, tidy, write_deployment
from services.settings import Deployment
from services.setup import Prepared

STOP_LIMIT_S = 10.0
"""How long a process may take to end beyond the time that its readers have."""
POLL_S = 0.05
TRY_S = 1.0
SETTLE_S = 2.0
"""How long a process may be missing before the gateways know it."""

log = logging.getLogger(__name__)


class Given(NamedTuple):
    """What the supervisor is handed by the command that made it."""

    listening: socket.socket
    """Where clients connect. Held here and by every gateway: while none accepts, they wait."""
    held: int
    """A descriptor that is locked as long as any process of this deployment lives."""
    read: Callable[[], Deployment]
    """The deployment as its file and the command's options say it now; raises SettingsError."""


class Supervisor:
    """The child processes and the order in which they start and stop."""

    def __init__(self, deployment: Deployment, prepared: Prepared, given: Given) -> None:
        self._deployment = deployment
        self._limits = deployment.supervision
        self._prepared = prepared
        self._given = given
        self._places = {
            name: Place(name, *which, Crashes(self._limits.crashes, self._limits.crash_window_s))
            for name, which in processes(deployment).items()
        }
        self._departing: list[Child] = []
        """Gateways whose successor is at work."""
        self._restarts = Restarts(self._places, self._begin, self._departing, given.read, self._adopt)
        self._has_served = False
        self._failed = ""
        self._judge_at_s: float | None = None
        self._loading = LoadingBar(loading_file(deployment.run))
        self._stop = threading.Event()
        self._signals = 0

    def run(self) -> int:
        """Start, watch, stop.

        Raises:
            ControlError: another one runs in the same run folder.
            OSError: a file or socket of the supervisor's own cannot be made.
        """
        lines = Lines(sys.stderr.fileno(), lambda num_lines: f"fairlead: {num_lines} lines could not be written")
        logging.basicConfig(level=logging.INFO, handlers=[lines], format="fairlead: %(message)s", force=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup ignores it
            signal.signal(signal.SIGHUP, self._on_hangup)
        control = Control(self._deployment.run)
        try:
            _show(self._prepared.model_line)
            write_deployment(self._deployment)
            self._clear()
            self._watch(control)
        finally:
            self._restarts.close()
            control.close()
            self._loading.close()
            self._stop_all()
            tidy(self._deployment.run, self._places)
            if self._failed:
                log.error("%s", self._failed)
            lines.close()
        return 1 if self._failed else 0

    def _on_signal(self, number: int, frame: object) -> None:
        del number, frame
        self._signals += 1
        self._stop.set()
        if sys.stderr.isatty():
            with contextlib.suppress(OSError):
                os.write(sys.stderr.fileno(), b"\n")
        if self._signals > 1:
            # The second Ctrl-C of somebody who does not want to wait for the readers.
            for child in self._children():
                child.kill("was to end at once")
        else:
            log.info("draining; once more to stop at once")

    def _on_hangup(self, number: int, frame: object) -> None:
        """The terminal has gone; nobody has asked twice for anything."""
        del number, frame
        self._stop.set()

    def _children(self) -> list[Child]:
        found = [child for place in self._places.values() for child in (place.child, place.successor)]
        return [child for child in (*found, *self._departing) if child is not None]

    def _log(self, name: str) -> Path:
        return Path(self._deployment.data) / "logs" / f"{name}.log"

    def _clear(self) -> None:
        """Each start writes new logs; those of the start before stay beside them. Nobody is ready yet."""
        for name in self._places:
            written = self._log(name)
            if written.exists():
                written.replace(written.with_suffix(".log.1"))
            ready_file(self._deployment.run, name).unlink(missing_ok=True)

    def _begin(self, place: Place) -> Child:
        gateway = place.service == "gateway"
        sockets = [self._given.listening.fileno()] if gateway else []
        return Child(
            place.name,
            [
                place.service,
                *(["--replica", str(place.replica + 1)] if place.replica else []),
                *(f"--socket={descriptor}" for descriptor in sockets),
            ],
            log=self._log(place.name),
            deployment=deployment_file(self._deployment.run),
            # What is held is held by whoever outlives us, too: nobody starts beside them.
            descriptors=[*sockets, self._given.held],
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
            if self._has_served:
                self._restarts.answer(control, self._deployment, now, leave_s=self._leave_s)
            else:
                self._restarts.put_off(control)
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
                    place.child, place.hindered = self._begin(place), ""
                except OSError as error:
                    self._hindered(place, f"{place.name} cannot be started: {error}", now)
            return
        child.look(elapsed_s)
        if child.pulse.num_beats:
            place.worked_s += elapsed_s
        if child.status is not None:
            child.bury()
            place.child, place.successor = place.successor, None
            if child.leaving_s is None and place.child is None:
                self._ended(place, child, now)
            return
        limit_s = self._limits.silence_s if child.pulse.num_beats else self._limits.start_s
        if child.pulse.silent_s > limit_s and not child.is_killed:
            log.error("%s has given no sign of life for %g s: it is stopped or stuck; killing it", place.name, limit_s)
            child.kill(f"gave no sign of life for {limit_s:g} s")
        else:
            self._has_left(child, now)

    def _has_left(self, child: Child, now: float) -> bool:
        """Whether a child that was asked to leave has; one that takes too long is killed."""
        if child.status is not None:
            child.bury()
            return True
        limit_s = self._leave_s
        if child.leaving_s is not None and now - child.leaving_s > limit_s and not child.is_killed:
            log.error("%s did not end within %g s; killing it", child.name, limit_s)
            child.kill(f"did not end within {limit_s:g} s")
        return False

    @property
    def _leave_s(self) -> float:
        return STOP_LIMIT_S + self._deployment.http.drain_s

    def _ended(self, place: Place, child: Child, now: float) -> None:
        """By itself, and nobody has taken its place."""
        says_why = child.status is not None and child.status >= 0
        sentence = f"{place.name} ended while starting: {child.last_words}"
        if says_why and not self._has_served:
            # Nothing has worked yet, and it says why: to try again would only hide the sentence.
            self._failed = sentence
        elif says_why and self._restarts.try_settings and not child.pulse.num_beats:
            # Its new settings are to blame: with those of before it worked.
            place.given_up = sentence
        else:
            self._crashed(place, child.last_words, now)

    def _hindered(self, place: Place, sentence: str, now: float) -> None:
        """No process, no descriptor, no room for its log: no end of its own, and it may pass."""
        if not self._has_served:
            self._failed = sentence
        elif place.hindered != sentence:
            log.error("%s; it is tried again each second", sentence)
        place.hindered, place.start_at_s = sentence, now + TRY_S

    def _crashed(self, place: Place, last_words: str, now: float) -> None:
        # By the time that it worked: one that loads for minutes and then ends at once ends too often, too.
        pause_s = place.crashes.pause_s(place.worked_s)
        if pause_s is not None:
            again = f" in {pause_s:g} s" if pause_s else ""
            log.warning("%s ended: %s; starting it again%s", place.name, last_words, again)
            place.start_at_s = now + pause_s
            return
        place.given_up = (
            f"{place.name} ended {place.crashes.count} times within {self._limits.crash_window_s:g} s of work and is "
            f"not started again; the last time: {last_words}"
        )
        log.error("%s", place.given_up)
        # The others hear of it by their streams: only then do they say whether they can do without.
        self._judge_at_s = now + SETTLE_S

    def _judge(self, now: float) -> None:
        """Whether anything can be served without what was given up: a gateway knows."""
        if self._judge_at_s is None or now < self._judge_at_s:
            return
        self._judge_at_s = None
        lost = [place for place in self._places.values() if place.given_up]
        gateways = [place for place in self._places.values() if place.service == "gateway" and not place.given_up]
        names = ", ".join(place.name for place in lost)
        if not lost:  # somebody has asked for another try meanwhile
            return
        if any(place.is_ready for place in gateways):
            log.warning("the others serve without %s; `fairlead restart %s` tries again", names, names.replace(",", ""))
        elif any(place.child is None or place.child.pulse.num_beats * BEAT_S <= SETTLE_S for place in gateways):
            # One that only starts does not know yet.
            self._judge_at_s = now + SETTLE_S
        else:
            sentences = "; ".join(place.given_up for place in lost)
            self._failed = f"nothing can be served without {names}: {sentences}"

    def _starting(self, for_s: float) -> None:
        missing = [place.name for place in self._places.values() if not place.is_ready]
        if sys.stderr.isatty() and not self._loading.look():
            text = f"waiting for {', '.join(missing)}" if missing else ""
            with contextlib.suppress(OSError):
                os.write(sys.stderr.fileno(), f"\r\033[K{text}".encode())
        if not missing:
            self._loading.close()
            http = self._deployment.http
            executor = self._places["executor"].child
            about = (executor and executor.about) or ""
            _show(about + self._prepared.welcome(self._deployment, f"http://{http.host}:{http.port}"))
            self._has_served = True
        elif for_s > self._limits.start_s:
            logs = f"{self._deployment.data}/logs"
            self._failed = f"{', '.join(missing)} not ready after {self._limits.start_s:g} s; logs: {logs}"

    def _adopt(self, deployment: Deployment) -> None:
        """What is started from now on has these settings."""
        write_deployment(deployment)
        self._deployment, self._limits = deployment, deployment.supervision
        for place in self._places.values():
            place.crashes = Crashes(self._limits.crashes, self._limits.crash_window_s)
        bound_waits(self._given.listening, deployment.http)

    # --- stopping -------------------------------------------------------------------------------------------------

    def _stop_all(self) -> None:
        """Gateways first: their readers finish while the others still work for them. Who connects now is refused."""
        self._given.listening.close()
        services = list(dict.fromkeys(place.service for place in self._places.values()))
        while services:
            before_s = time.monotonic()
            service = services.pop()
            leaving = [child for child in self._children() if self._places[child.name].service == service]
            for child in leaving:
                if child.leaving_s is None and child.status is None:
                    child.leave(before_s, signal.SIGTERM)
            while leaving:
                now = time.monotonic()
                leaving = [child for child in leaving if not (self._has_left(child, now) or self._is_stuck(child, now))]
                if self._has_served and not self._failed and self._signals <= 1:
                    # The readers' answers are still computed by these.
                    for place in self._places.values():
                        if place.service in services:
                            self._attend(place, now, now - before_s)
                before_s = now
                time.sleep(POLL_S)

    def _is_stuck(self, child: Child, now: float) -> bool:
        """Whether even a kill does not end it: it waits within the kernel, and nobody need wait with it."""
        stuck = child.leaving_s is not None and now - child.leaving_s > self._leave_s + STOP_LIMIT_S
        if stuck:
            log.error("%s (process %d) was killed and does not end; it is left behind", child.name, child.pid)
        return stuck


def _show(text: str) -> None:
    """On stdout, if anybody reads it."""
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), f"{text}\n".encode())
