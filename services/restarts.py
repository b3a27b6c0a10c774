"""`fairlead restart` as the supervisor answers it: what is restarted, with which settings, and what the caller is told.

Owns the one restart under way. Starts and stops no process itself, and never waits.
"""

import logging
from collections.abc import Callable, Iterator

from services.children import Child, Place
from services.control import Asked, Caller, Control
from services.resettling import changes
from services.rolling import RestartError, Rolling
from services.settings import Deployment, SettingsError
from services.setup import SetupError, prepare

TELL_S = 1.0
STARTING = "services are being started just now; ask again when they are ready"

log = logging.getLogger(__name__)


class Restarts:
    """All that are asked for, one at a time.

    Args:
        places: all there are, by name.
        begin: starts the process of a place; raises OSError.
        departing: processes whose successor is at work.
        read: the deployment as its file says it now; raises SettingsError.
        adopt: what is started from then on has these settings; raises OSError.
    """

    def __init__(
        self,
        places: dict[str, Place],
        begin: Callable[[Place], Child],
        departing: list[Child],
        read: Callable[[], Deployment],
        adopt: Callable[[Deployment], None],
    ) -> None:
        self._places = places
        self._begin = begin
        self._departing = departing
        self._read = read
        self._adopt = adopt
        self._rolling: Rolling | None = None
        self._steps: Iterator[str] = iter(())
        self._caller: Caller | None = None
        self._former: Deployment | None = None
        """The settings before the restart under way, if it brings new ones."""
        self._told_s = 0.0

    @property
    def try_settings(self) -> bool:
        """Whether new settings are just being tried."""
        return self._former is not None

    def put_off(self, control: Control) -> None:
        """Whoever asks is told to come again."""
        for caller, _ in control.questions():
            _end(caller, STARTING)

    def answer(self, control: Control, deployment: Deployment, now: float, *, leave_s: float) -> None:
        """Begin what is asked for, and go on with what was begun."""
        for caller, asked in control.questions():
            if why := self._begin_one(caller, asked, deployment, leave_s):
                _end(caller, why)
        if self._rolling is not None and self._caller is not None:
            self._go_on(self._rolling, self._caller, now)

    def close(self) -> None:
        """All services are stopped."""
        if self._caller is not None:
            _end(self._caller, "`fairlead up` is being stopped, and the restart with it")

    def _begin_one(self, caller: Caller, asked: Asked, deployment: Deployment, leave_s: float) -> str:
        """Returns why not; empty: it has begun."""
        known = {name for place in self._places.values() for name in (place.name, place.service)}
        unknown = [name for name in asked.restart if name not in known]
        if unknown:
            return f"there is no {unknown[0]} here; there are: {', '.join(self._places)}"
        if self._rolling is not None:
            return STARTING
        wanted = [
            place
            for place in self._places.values()
            if not asked.restart or place.name in asked.restart or place.service in asked.restart
        ]
        stays = [place.service for place in self._places.values() if place not in wanted]
        try:
            new = self._read()
            changed = changes(deployment, new, stays)
            if changed:
                prepare(new)
                self._adopt(new)
        except (SettingsError, SetupError) as error:
            return str(error)
        except OSError as error:
            return f"{error.filename or deployment.data}: {error.strerror}; nothing was restarted"
        if changed:
            line = f"new settings: {', '.join(map(str, changed))}"
            log.info("%s", line)
            caller.say(line)
            self._former = deployment
        start_s = new.supervision.start_s
        everything = list(self._places.values())
        self._rolling = Rolling(everything, self._begin, self._departing, start_s=start_s, leave_s=leave_s)
        self._steps, self._caller = self._rolling.steps(wanted), caller
        return ""

    def _go_on(self, rolling: Rolling, caller: Caller, now: float) -> None:
        try:
            line = next(self._steps, None)
        except RestartError as error:
            sentence = f"{error}{self._take_back(rolling.turn)}"
            log.error("%s", sentence)  # noqa: TRY400  the sentence says it all
            _end(caller, sentence)
            self._over()
            return
        if line:
            log.info("%s", line)
            caller.say(line)
        elif line is None:
            caller.say("restarted", "done")
            caller.close()
            self._over()
        elif now - self._told_s >= TELL_S:
            caller.wait(rolling.awaited)
        else:
            return
        self._told_s = now

    def _over(self) -> None:
        self._rolling = self._caller = self._former = None

    def _take_back(self, place: Place | None) -> str:
        """A service does not start with its new settings: those of before are tried. Returns the rest of a sentence."""
        if self._former is None or place is None:
            return ""
        try:
            self._adopt(self._former)
        except OSError as error:
            return f"; the settings of before cannot be written: {error.strerror}"
        if place.given_up:
            place.given_up, place.start_at_s = "", 0.0
        elif place.child is not None and not place.is_ready:
            place.child.kill("was not ready with its new settings")
        return f"; the settings of before are in force again, for {place.name} at once, for others when they start next"


def _end(caller: Caller, why: str) -> None:
    caller.say(why, "failed")
    caller.close()
