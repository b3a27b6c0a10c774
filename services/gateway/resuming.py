"""Requests that outlive the scheduler or the admission process that had them, and how long anybody waits for those.

Owns which requests nobody has and when they are sent again, which finished ones the scheduler took with it before it
could say so, and since when a service is away. Knows no tokens' text and no HTTP.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping

from services.errors import RequestError
from services.gateway.neighbours import ADMISSION, Neighbours
from services.gateway.running import Running
from services.streams import Stream
from services.wire import Cancel, Capacity, RequestEnded, Submit

EXECUTOR = "executor"

MOST_IN_VAIN = 3
"""A request that was sent again so often and got nothing may be what brings its services down."""
MOST_OWED = 10_000
"""Kept for an admission process that does not come back."""
MOST_OVER = 10_000
"""Ends that are remembered after whoever had to be told was told: it may be lost before it has kept them."""

HandOn = Callable[[Running, Stream, Submit], None]


class Resuming:
    """What a gateway does when it loses a service.

    Args:
        neighbours: the services behind.
        running: requests that have not ended, by id.
        hand_on: gives a request to an admission process (again).
        fail: ends a request with an error.
        limit_s: how long a request waits for whoever was lost; 0: not at all.
    """

    def __init__(
        self,
        neighbours: Neighbours,
        running: Mapping[int, Running],
        hand_on: HandOn,
        fail: Callable[[int, RequestError], None],
        limit_s: float,
    ) -> None:
        self.num_resumed = 0
        """Requests that were sent to another scheduler, since the start."""
        self._neighbours = neighbours
        self._running = running
        self._hand_on = hand_on
        self._fail = fail
        self._limit_s = limit_s
        self._parked: dict[int, Running] = {}
        self._finished: dict[int, Running] = {}
        """Their clients have all of it; the scheduler has not said yet that they are over."""
        self._owed: dict[int, Running] = {}
        """Of those, the ones that a lost scheduler will never speak of, until admission has heard of them."""
        self._over: OrderedDict[int, tuple[Stream | None, RequestEnded]] = OrderedDict()
        """Of those that nobody is owed any more: who was to charge for it, and how it ended."""
        self._away: dict[str, float] = {}
        """Services that were there, and since when (loop time) they are not."""
        self._timer: asyncio.TimerHandle | None = None

    # --- services -------------------------------------------------------------------------------------------------

    def opened(self, stream: Stream) -> None:
        """A stream is up."""
        self._away.pop(stream.peer.service, None)

    def told(self, stream: Stream, capacity: Capacity, num_before: int) -> None:
        """A service said what there is, first of all; before there were so many executors."""
        self._neighbours.told(stream, resumes=capacity.resumes)
        if capacity.num_executors:
            self._away.pop(EXECUTOR, None)
        elif num_before and capacity.resumes:
            self._away.setdefault(EXECUTOR, asyncio.get_running_loop().time())
        if stream.peer.service == ADMISSION and self._owed:
            self._tell_counts()
        if self._parked:
            self.send_again()

    def is_briefly_away(self, service: str) -> bool:
        """It was there, and may be again before anybody has waited too long for it."""
        since_s = self._away.get(service)
        return since_s is not None and asyncio.get_running_loop().time() < since_s + self._limit_s

    def admission_lost(self, stream: Stream, failure: RequestError) -> None:
        """Its backlog went with it. Running requests go on without it."""
        self._note_away(stream)
        for running in list(self._running.values()):
            if running.admission is stream and not (running.admitted or running.is_parked):
                self._park(running, stream, failure)
        self.send_again()

    def scheduler_lost(self, stream: Stream, failure: RequestError) -> None:
        """All that it computed went with it."""
        self._note_away(stream)
        if self._neighbours.resumes(stream):
            self._owed |= self._finished
            for request in [*self._owed][: max(0, len(self._owed) - MOST_OWED)]:
                del self._owed[request]  # admission has settled them by now as far as it was told
        self._finished.clear()
        for running in list(self._running.values()):
            if running.request in self._running and (running.admitted or running.submit.scheduler_epoch):
                running.lost_scheduler = True
                if not running.is_parked:
                    self._park(running, stream, failure)
        self._tell_counts()
        self.send_again()

    def _note_away(self, stream: Stream) -> None:
        service = stream.peer.service
        if self._neighbours.resumes(stream) and not self._neighbours.has(service):
            self._away.setdefault(service, asyncio.get_running_loop().time())

    # --- requests -------------------------------------------------------------------------------------------------

    def wait(self, running: Running) -> None:
        """A new request that there is no admission process for at the moment."""
        running.is_parked = True
        self._parked[running.request] = running
        self._lose(running, self._away.get(ADMISSION))

    def heard(self, running: Running) -> None:
        """Somebody has it."""
        running.lost_at_s = None
        running.is_parked = False
        self._parked.pop(running.request, None)

    def released_in_vain(self, running: Running, admission: Stream, failure: RequestError) -> None:
        """It was released to a scheduler that was lost before that was heard of."""
        if not running.is_parked:
            running.was_admitted = running.lost_scheduler = True
            self._park(running, admission, failure)
            self.send_again()

    def stranded(self, stream: Stream, message: RequestEnded) -> bool:
        """Admission says that nobody computes a request; False: this is the end of it, because it was never to be sent
        again.
        """
        running = self._running.get(message.request)
        if not self._neighbours.resumes(stream):
            return False
        moved = running or self._finished.get(message.request)
        if moved is not None and moved.admission is not None and not self._neighbours.is_same(stream, moved.admission):
            self._tell_moved(moved)
        elif running is None:
            if message.request in self._finished:
                self._owed[message.request] = self._finished.pop(message.request)
                self._tell_counts()
            else:
                stream.send(self._answer(stream, message.request))
        elif not (running.is_parked or message.attempt < running.submit.attempt or self._is_made(running)):
            running.was_admitted = running.lost_scheduler = True
            self._park(running, stream, RequestError(message.code, message.message))
            self.send_again()
        return True

    def handed_on(self, running: Running, admission: Stream) -> None:
        """An admission process is given it (again), which need not be the one before."""
        before, running.admission = running.admission, admission
        known = [each for each in (*running.earlier, before) if each is not None]
        running.earlier = [each for each in known if not self._neighbours.is_same(each, admission)]

    def refused(self, running: Running, stream: Stream) -> bool:
        """An admission process does not have it. True: one that it was given to before does, as tokens have shown."""
        if running.admission is None or not self._neighbours.is_same(stream, running.admission):
            return True  # whoever it was given to last decides
        if not (running.earlier and running.was_admitted):
            return False
        running.admission = running.earlier.pop()
        if not running.admitted:
            self._park(running, stream, RequestError("scheduler_lost", "the scheduler was lost; try again"))
            self.send_again()
        return True

    def admitted(self, running: Running) -> None:
        """The process that it was given to has released it."""
        running.admitted = running.was_admitted = True
        self.heard(running)
        self._tell_moved(running)

    def _tell_moved(self, running: Running) -> None:
        """Whoever released it before the scheduler was lost charges nothing for it, once another does."""
        if not (running.submit.attempt and running.admitted):
            return
        for before in list(running.earlier):
            there = self._neighbours.again(before)
            if there is not None:
                running.earlier.remove(before)
                there.send(RequestEnded(running.request, "refused", 0, attempt=running.submit.attempt))

    def _is_made(self, running: Running) -> bool:
        """The scheduler has it, for all that is known here."""
        return running.admitted and running.is_begun and self._neighbours.scheduler is not None

    def finished(self, running: Running) -> None:
        """Its client has all of it."""
        if self._limit_s:
            self._finished[running.request] = running

    def ended(self, request: int) -> None:
        """The scheduler is done with it."""
        running = self._finished.pop(request, None)
        if running is not None:
            self._remember(running)

    def gone(self, running: Running) -> None:
        """It has ended, whoever has it."""
        self._parked.pop(running.request, None)

    def send_again(self) -> None:
        """Whoever can be sent again is."""
        scheduler = self._neighbours.scheduler
        for running in list(self._parked.values()):
            admission = self._neighbours.admission()
            if running.was_admitted:
                # It is charged for there.
                admission = None if running.admission is None else self._neighbours.again(running.admission)
            if admission is None or self._neighbours.resumes(admission) is None:
                continue
            epoch = 0
            if running.was_admitted:
                if scheduler is None or (resumes := self._neighbours.resumes(scheduler)) is None:
                    continue
                if not (resumes and self._neighbours.resumes(admission)):
                    self._give_up(running)
                    continue
                epoch = scheduler.peer.epoch
                self.num_resumed += 1
            del self._parked[running.request]
            self._hand_on(running, admission, running.again(epoch))

    def close(self) -> None:
        """Wait for nobody any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _park(self, running: Running, lost: Stream, failure: RequestError) -> None:
        if not self._limit_s or not self._neighbours.resumes(lost):
            self._fail(running.request, failure)
            return
        if running.num_in_vain >= MOST_IN_VAIN and not running.is_begun:
            self._give_up(running)
            return
        running.is_parked = True
        running.admitted = False
        self._parked[running.request] = running
        self._lose(running, None)

    def _lose(self, running: Running, since_s: float | None) -> None:
        loop = asyncio.get_running_loop()
        if running.lost_at_s is None:
            running.lost_at_s = loop.time() if since_s is None else since_s
        at_s = running.lost_at_s + self._limit_s
        if self._timer is None or at_s < self._timer.when():
            self.close()
            self._timer = loop.call_at(at_s, self._look)

    def _look(self) -> None:
        """Whoever has waited for too long waits no longer."""
        self._timer = None
        loop = asyncio.get_running_loop()
        lost = [running for running in self._running.values() if running.lost_at_s is not None]
        for running in lost:
            assert running.lost_at_s is not None  # noqa: S101  asked for above
            if running.admitted:
                running.lost_at_s = None  # tokens came, and whoever should have said so was lost in its turn
            elif running.lost_at_s + self._limit_s <= loop.time() and running.request in self._running:
                self._give_up(running)
        waiting = [each.lost_at_s for each in self._running.values() if each.lost_at_s is not None]
        if waiting:
            self._timer = loop.call_at(min(waiting) + self._limit_s, self._look)

    def _give_up(self, running: Running) -> None:
        if running.was_admitted:
            code, what = "scheduler_lost", "the scheduler was lost while the request ran"
        else:
            code, what = "admission_lost", "admission was lost while the request waited"
        self._fail(running.request, RequestError(code, f"{what}, and it cannot go on elsewhere; try again"))

    def _tell_counts(self) -> None:
        """What a lost scheduler could not say any more, to whoever charges for it."""
        for running in list(self._owed.values()):
            admission = None if running.admission is None else self._neighbours.again(running.admission)
            if admission is None or (resumes := self._neighbours.resumes(admission)) is None:
                continue
            del self._owed[running.request]
            ended = self._remember(running)
            if resumes:
                admission.send(ended)

    def _remember(self, running: Running) -> RequestEnded:
        """How it ended. What was sent may be lost with whoever it was sent to."""
        counted = 0 if running.submit.pooling else running.num_tokens
        ended = RequestEnded(running.request, "finished", counted, attempt=running.submit.attempt)
        ended.cached_tokens = running.cached_tokens
        self._over[running.request] = running.admission, ended
        if len(self._over) > MOST_OVER:
            self._over.popitem(last=False)
        return ended

    def _answer(self, admission: Stream, request: int) -> RequestEnded | Cancel:
        """What becomes of a request that this process has charged for and nobody computes, and that is over here."""
        charging, ended = self._over.get(request, (None, None))
        if ended is None:
            return Cancel(request)
        # Whoever it went on with after a scheduler was lost has charged for all of it.
        if charging is None or not ended.attempt or self._neighbours.is_same(admission, charging):
            return ended
        return RequestEnded(request, "refused", 0, attempt=ended.attempt)
