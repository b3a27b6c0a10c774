"""Requests that outlive whoever had them, on admission's side: what their gateways send again, and what those are told.

Owns what was sent again before this process and the scheduler agree on what is in flight, and how long a gateway may be
away. What it means for charges is the core's.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping

from policies.admission.core import AdmissionCore
from policies.events import CancelRequested
from services.admission.scheduler_side import SchedulerSide
from services.streams import Stream
from services.wire import RequestEnded, Submit

ABSENT_S = 2.0
"""How long a gateway may be away before what nobody computes for it is given up: it connects again within a second."""
NS_PER_S = 1e9


class SentAgain:
    """All of one admission process.

    Args:
        core: whose stranded requests these are.
        handle: hands it an event.
        gateways: that are connected, by number.
        arrived: what is done with a request that is sent, once it may be.
        scheduler: this process's side of the stream to it.
    """

    def __init__(
        self,
        core: AdmissionCore,
        handle: Callable[[CancelRequested], None],
        gateways: Mapping[int, Stream],
        arrived: Callable[[Submit], None],
        scheduler: SchedulerSide,
    ) -> None:
        self._core = core
        self._handle = handle
        self._gateways = gateways
        self._arrived = arrived
        self._scheduler = scheduler
        self._kept: dict[int, Submit] = {}
        self._absent: dict[int, asyncio.TimerHandle] = {}
        self._is_leaving = False

    def came(self, submit: Submit) -> None:
        """A gateway sent a request, again or for the first time."""
        if submit.resent and not self._scheduler.agrees_on(submit.scheduler_epoch):
            self._kept[submit.request] = submit
        else:
            self._arrived(submit)

    def agreed(self) -> None:
        """It is known by now what the scheduler has."""
        for request, submit in list(self._kept.items()):
            if self._scheduler.agrees_on(submit.scheduler_epoch):
                del self._kept[request]
                self._arrived(submit)

    def cancelled(self, request: int) -> None:
        """It will not be wanted."""
        self._kept.pop(request, None)

    def waited_s(self, submit: Submit) -> float:
        """For how long its client has waited that was sent before; 0 where it comes for the first time."""
        gateway = self._gateways.get(submit.request >> 32)
        if not submit.resent or gateway is None or not submit.received_ns:
            return 0.0
        return max(0.0, (time.monotonic_ns() - gateway.clock.ours(submit.received_ns)) / NS_PER_S)

    # --- who is to send them --------------------------------------------------------------------------------------

    def stranded(self, request: int, attempt: int) -> None:
        """Nobody computes a request: its gateway is told."""
        gateway = request >> 32
        if gateway in self._gateways:
            self._tell(self._gateways[gateway], request, attempt)
        else:
            self._wait_for(gateway)

    def opened(self, gateway: int) -> None:
        """A gateway is there (again)."""
        timer = self._absent.pop(gateway, None)
        if timer is not None:
            timer.cancel()
        for request in self._of(gateway):
            self._tell(self._gateways[gateway], request, self._core.ledger.in_flight[request].attempt)

    def closed(self, gateway: int, waiting: Iterable[int]) -> None:
        """A gateway is gone, for now at least: what waits, of the requests that do, is withdrawn."""
        for request in [request for request in self._kept if request >> 32 == gateway]:
            del self._kept[request]
        if self._is_leaving:
            return
        for request in [request for request in waiting if request >> 32 == gateway]:
            self._handle(CancelRequested(request, "gateway_lost"))
        if self._of(gateway):
            self._wait_for(gateway)

    def leave(self) -> None:
        """This process ends, and leaves everything to its successor."""
        self._is_leaving = True
        for timer in self._absent.values():
            timer.cancel()
        self._absent.clear()

    def _of(self, gateway: int) -> list[int]:
        return [request for request in self._core.ends.stranded if request >> 32 == gateway]

    def _tell(self, gateway: Stream, request: int, attempt: int) -> None:
        sentence = "the request was lost on its way to the scheduler, or with it; try again"
        gateway.send(RequestEnded(request, "error", 0, "admission_lost", sentence, attempt=attempt))

    def _wait_for(self, gateway: int) -> None:
        if not (gateway in self._absent or self._is_leaving):
            self._absent[gateway] = asyncio.get_running_loop().call_later(ABSENT_S, self._give_up, gateway)

    def _give_up(self, gateway: int) -> None:
        del self._absent[gateway]
        for request in self._of(gateway):
            self._handle(CancelRequested(request, "gateway_lost"))
