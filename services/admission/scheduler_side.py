"""Admission's side of its stream to the scheduler: what is true of the requests there after either of them was away.

Owns which start of the scheduler it speaks with, which of its ends are settled, and how long it may be away. Messages
become events; what they mean for charges is the core's.
"""

import asyncio
import logging
from collections.abc import Callable

import numpy as np

from policies.events import AdmissionEvent, RequestFinished, SchedulerHolds, SchedulerLost, TokensProduced
from services.admission.store import Kept
from services.transport import Stream
from services.wire import Cancel, Capacity, Dispatch, EndsKept, Holds, RequestEnded, Usage

LOST = "scheduler_lost"
"""The outcome of what a scheduler had that is gone, or has it no more."""
GATEWAY_LOST = "gateway_lost"
"""The code of what a scheduler cancelled because its stream to the gateway broke."""
MOST_UNKEPT = 100_000
"""Ends that the store has not kept; a scheduler tells of no more than so many again."""

log = logging.getLogger(__name__)


class SchedulerSide:
    """The scheduler, as far as it can be reached.

    A stream that broke says nothing about what is computed behind it: only a new start of the scheduler, or one that
    stays away for `lease_s`, ends what it had.

    Args:
        handle: the core's.
        settled: told (epoch of the scheduler, number) of an end after the core has heard of it; 0: it is a new start.
        changed: told of the capacity, from when work can be released on.
        lease_s: how long it may be away.
        resume_s: how long gateways may go on with what it had.
    """

    def __init__(
        self,
        handle: Callable[[AdmissionEvent], None],
        settled: Callable[[int, int], None],
        changed: Callable[[Capacity], None],
        lease_s: float,
        resume_s: float,
    ) -> None:
        self.stream: Stream | None = None
        self._handle = handle
        self._settled = settled
        self._changed = changed
        self._lease_s = lease_s
        self._resume_s = resume_s
        self._lease: asyncio.TimerHandle | None = None
        self._agrees = False
        """On this connection: both know what the scheduler holds."""
        self._epoch = 0
        """The start of the scheduler whose requests are in flight; 0: none was met."""
        self._ends_number = 0
        """The newest of its ends that is settled."""
        self._kept_number = 0
        """The newest of its ends that is settled for good."""
        self._unkept: dict[int, tuple[int, int]] = {}
        """Requests, with the attempt, whose ends are settled and not for good, by number: the scheduler would tell of
        them again.
        """
        self._expired: dict[int, None] = {}
        """Requests of that start that are settled because it was away for too long."""

    @property
    def epoch(self) -> int:
        """Of the scheduler that is connected; 0: none is."""
        return 0 if self.stream is None else self.stream.peer.epoch

    def agrees_on(self, epoch: int) -> bool:
        """Both know what is in flight, and it is this start of the scheduler; 0: whichever."""
        return self._agrees and epoch in (0, self._epoch)

    def begin(self, kept: Kept) -> None:
        """Go on from what an earlier process of this admission knew."""
        self._epoch, self._ends_number, self._kept_number = kept.scheduler_epoch, kept.ends_number, kept.ends_number
        self._wait()

    def close(self) -> None:
        """Wait for nothing any more."""
        if self._lease is not None:
            self._lease.cancel()
            self._lease = None

    def opened(self, stream: Stream) -> None:
        """It is there. Its first word is its capacity."""
        self.close()
        self.stream, self._agrees = stream, False
        if stream.peer.epoch != self._epoch:
            self._lost()
            self._epoch, self._ends_number, self._kept_number = stream.peer.epoch, 0, 0
            self._expired.clear()
            self._unkept.clear()
            # Whoever is killed before the first end must know, too, whose requests are in flight.
            self._settled(self._epoch, 0)

    def closed(self) -> None:
        """It cannot be reached: nothing is released until it can, and what it has goes on."""
        self.stream, self._agrees = None, False
        self._changed(Capacity(num_executors=0, kv_tokens=0, max_sequence_tokens=0))
        self._wait()

    def received(self, stream: Stream, message: Capacity | Holds | RequestEnded | Usage) -> None:
        """A message of the scheduler. What comes before both agree is in what it holds, which follows."""
        match message:
            case Capacity() if self._agrees:
                self._changed(message)
            case Capacity() if message.counts_ends:
                stream.send(EndsKept(self._kept_number))
            case Capacity():
                # A scheduler of the version before keeps no account: what it had is settled as far as it was told.
                self._lost()
                self._agrees = True
                self._changed(message)
            case Holds():
                self._agrees = True
                over = set(self._unkept.values())
                held = [
                    each
                    for each in message.requests
                    if each.request not in self._expired and (each.request, each.attempt) not in over
                ]
                # What it does not have by now never reached it, and will not: the stream before this one is closed.
                self._expired = {each.request: None for each in message.requests if each.request in self._expired}
                self._handle(SchedulerHolds(tuple(held), self._resume_s))
            case _ if not self._agrees:
                pass
            case Usage():
                sequences = np.frombuffer(message.sequences, np.int64).tolist()
                self._handle(TokensProduced(sequences, message.prefix_hits))
            case RequestEnded():
                self._expired.pop(message.request, None)
                self._handle(
                    RequestFinished(
                        message.request,
                        message.output_tokens,
                        message.outcome,
                        message.attempt,
                        # The gateway itself may be well, and connect again.
                        self._resume_s if message.code == GATEWAY_LOST else 0.0,
                    )
                )
                if message.number > self._ends_number:
                    self._ends_number = message.number
                    self._unkept[message.number] = message.request, message.attempt
                    if len(self._unkept) > MOST_UNKEPT:
                        del self._unkept[next(iter(self._unkept))]
                    self._settled(self._epoch, message.number)

    def send(self, message: Cancel | Dispatch) -> None:
        """To the scheduler, if it is there."""
        if self.stream is not None:
            self.stream.send(message)

    def kept(self, epoch: int, number: int) -> None:
        """The store keeps that the ends up to this number are settled."""
        if epoch == self._epoch and number > self._kept_number:
            self._kept_number = number
            while self._unkept and next(iter(self._unkept)) <= number:
                del self._unkept[next(iter(self._unkept))]
            if self._agrees and self.stream is not None:
                self.stream.send(EndsKept(number))

    def settled_as_lost(self, request: int) -> None:
        """A request was settled without its end: should the scheduler have it after all, it counts no more."""
        self._expired[request] = None

    def _wait(self) -> None:
        self.close()
        self._lease = asyncio.get_running_loop().call_later(self._lease_s, self._expire)

    def _expire(self) -> None:
        self._lease = None
        log.warning("the scheduler was away for %g s: what it had in flight is lost", self._lease_s)
        self._lost()

    def _lost(self) -> None:
        self._handle(SchedulerLost(self._resume_s))
