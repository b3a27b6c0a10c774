"""Starting services again one after the other, each ready before the next one's turn: `fairlead restart`.

Owns the order of it. Never waits: whoever drives it looks again a little later. Knows no sockets.
"""

import signal
import time
from collections.abc import Callable, Iterator

from services.children import HAND_OVER, Child, Place

WAITED = {
    "executor": "running requests waited no longer than that",
    "scheduler": "running requests waited no longer than that",
    "admission": "new requests waited no longer than that",
    "gateway": "no request waited for it",
}
"""Of each service: who could do nothing while it was away."""


class RestartError(Exception):
    """What was asked for did not come about; the sentence says why."""


class Rolling:
    """One restart of some places.

    Args:
        places: all there are: the next one's turn comes when they work together again.
        begin: starts the process of a place; raises OSError.
        departing: processes whose successor is at work; whoever drives this takes out those that have ended.
        start_s: how long a process may take until it is ready.
        leave_s: how long it may take to end.

    Attributes:
        turn: the place that is being started again.
        awaited: what the restart waits for just now, in words.
    """

    def __init__(
        self,
        places: list[Place],
        begin: Callable[[Place], Child],
        departing: list[Child],
        *,
        start_s: float,
        leave_s: float,
    ) -> None:
        self._places = places
        self._begin = begin
        self._departing = departing
        self._start_s = start_s
        self._leave_s = leave_s
        self.turn: Place | None = None
        self.awaited = ""

    def steps(self, places: list[Place]) -> Iterator[str]:
        """Start each again, ready before the next one's turn; yields what there is to say, mostly nothing.

        Raises:
            RestartError: one did not become ready. Those after it are as they were.
        """
        for number, place in enumerate(places, 1):
            yield f"restarting {place.name} ({number} of {len(places)})"
            self.turn = place
            place.crashes.forgive()
            began_s = time.monotonic()
            before = place.child
            if before is None:
                place.given_up, place.start_at_s = "", 0.0
            elif place.service == "gateway":
                # Its readers cannot go elsewhere: the next one takes new connections first, then this one drains.
                place.successor = self._new(place)
                yield from self._succeed(place, before, began_s)
            else:
                before.leave(began_s, HAND_OVER)
            deadline = began_s + self._leave_s + self._start_s
            while (missing := self._missing()) or place.child is before or place.given_up:
                if place.given_up:
                    raise RestartError(place.given_up)
                if time.monotonic() > deadline:
                    raise RestartError(
                        f"with {place.name} started again, {missing or place.name} is not ready; its log says what it "
                        f"misses: {place.child.log if place.child else 'it has none yet'}"
                    )
                yield from self._wait(missing or f"the end of {place.name}", began_s)
            yield f"{place.name} is ready after {time.monotonic() - began_s:.1f} s; {WAITED[place.service]}"
            while before in self._departing:
                yield from self._wait(f"the readers of the {place.name} before", began_s)

    def _wait(self, awaited: str, since_s: float) -> Iterator[str]:
        self.awaited = f"waiting for {awaited}, {time.monotonic() - since_s:.0f} s"
        yield ""

    def _missing(self) -> str:
        return ", ".join(place.name for place in self._places if not (place.is_ready or place.given_up))

    def _new(self, place: Place) -> Child:
        try:
            return self._begin(place)
        except OSError as error:
            why = f"the new {place.name} cannot be started: {error.strerror or error}; the old one goes on"
            raise RestartError(why) from error

    def _succeed(self, place: Place, before: Child, began_s: float) -> Iterator[str]:
        deadline = began_s + self._start_s
        while (successor := place.successor) is not None and not successor.is_ready:
            late = time.monotonic() > deadline
            if late:
                successor.kill(f"was not ready after {self._start_s:g} s")
            if late or successor.status is not None:
                successor.bury()
                place.successor = None
                raise RestartError(f"the new {place.name} did not start: {successor.last_words}; the old one goes on")
            yield from self._wait(f"the new {place.name}", began_s)
        if successor is not None:
            place.child, place.successor = successor, None
            self._departing.append(before)
            before.leave(time.monotonic(), signal.SIGTERM)
