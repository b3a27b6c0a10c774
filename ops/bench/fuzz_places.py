"""Where the fuzz strikes: each service as it is, behind connections without a kernel, and neighbours to lie as.

Owns honest traffic enough for a lie to reach deep. Knows no mutation.
"""

import random
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ops.bench.fuzz_frames import Pool
from ops.bench.fuzz_links import ExecutorPlace, GatewayPlace
from ops.bench.fuzz_neighbours import (
    DEMO,
    GATEWAY,
    MOST_LIVE,
    POLICY,
    Neighbour,
    Place,
    accepted,
    deployment_in,
    linked,
    some_submit,
)
from services.admission.service import AdmissionService
from services.framing import (
    Identity,
    encode_frame,
)
from services.hearing import Hearing
from services.scheduler.service import SchedulerService
from services.transport import Listener
from services.wire import (
    Cancel,
    Capacity,
    Dispatch,
    EndsKept,
    ExecutorReady,
    Holds,
    InvalidRequest,
    PolicyNow,
    PolicyPrepare,
    PolicyPrepared,
    RequestEnded,
    StepMessage,
    StepResult,
    Stopped,
    Usage,
)
from services.wire_operator import MirrorAsked, ReportAsked
from services.wire_parts import Message


class SchedulerPlace:
    """The scheduler between two admission processes, two gateways, two executors and an operator."""

    name = "scheduler"

    def __init__(self) -> None:
        self.pool = Pool()
        self.neighbours: list[Neighbour] = []
        self._steps: dict[int, deque[StepMessage]] = {}
        self._next = GATEWAY << 32
        self._document = POLICY.read_bytes()

    async def open(self, folder: Path) -> None:
        """Without its socket."""
        self._service = SchedulerService(deployment_in(folder))
        make = accepted(Hearing("scheduler", self._service), "scheduler", Listener(None, None))  # type: ignore[arg-type]  # nothing listens
        names = [("admission", "0"), ("gateway", str(GATEWAY)), ("executor", "0"), ("executor", "1")]
        names += [("admission", "1"), ("gateway", "8"), ("operator", "1")]
        self.neighbours = [Neighbour(Identity(*name, 1), make, listens=False) for name in names]
        for neighbour in self.neighbours:
            self.join(neighbour)

    def join(self, neighbour: Neighbour) -> None:
        """Connect and say what must be said first."""
        neighbour.connect()
        neighbour.shake()
        match neighbour.identity.service:
            case "admission":
                # To compile a policy takes longer than all else: it is told anew now and then.
                if neighbour.num_connections % 50 == 1:
                    neighbour.say(encode_frame(PolicyNow(1, self._document)))
                neighbour.say(encode_frame(EndsKept(0)))
            case "executor":
                self._steps[self.neighbours.index(neighbour)] = deque()
                neighbour.say(encode_frame(ExecutorReady(DEMO)))
        neighbour.listen()

    def honest(self, neighbour: Neighbour, rng: random.Random) -> Message:
        """Requests, steps that come back, cancels."""
        match neighbour.identity.service:
            case "executor":
                steps = self._steps[self.neighbours.index(neighbour)]
                steps.extend(each for each in neighbour.heard if isinstance(each, StepMessage))
                neighbour.heard.clear()
                if not steps:
                    return ExecutorReady(DEMO)
                step = steps.popleft()
                self.pool.steps = [step.step]
                num_rows = int(np.frombuffer(step.samples, np.bool_).sum())
                return StepResult(step.step, bytes(4 * num_rows), bytes(num_rows), 1, 2, 3)
            case "admission":
                for each in neighbour.heard:
                    if isinstance(each, RequestEnded) and each.request in self.pool.requests:
                        self.pool.requests.remove(each.request)
                neighbour.heard.clear()
                if len(self.pool.requests) > MOST_LIVE:
                    return Cancel(self.pool.requests.pop(0))
                if rng.random() < 0.005:
                    self.pool.documents = [self._document, b"version: 1"]
                    return PolicyPrepare(2, self._document)
                if rng.random() < 0.1:
                    return EndsKept(rng.randrange(10_000))
                request, self._next = self._next, self._next + 4
                self.pool.requests.append(request)
                return Dispatch(some_submit(rng, request), rng.choice(("paid", "free")), rng.random(), GATEWAY)
            case "gateway":
                neighbour.heard.clear()
                request = rng.choice(self.pool.requests or [0])
                return rng.choice((Cancel(request), Stopped(request, rng.randrange(4))))
            case _:
                neighbour.heard.clear()
                return MirrorAsked(0.01)

    def check(self) -> None:
        """Invariants of the core."""
        self._service._core.check()  # noqa: SLF001  the same is asserted of every core in tests

    async def close(self) -> None:
        """Stop it."""
        for neighbour in self.neighbours:
            neighbour.close()
        await self._service.stop()


class AdmissionPlace:
    """Admission between two gateways, an operator, a follower and the scheduler."""

    name = "admission"

    def __init__(self) -> None:
        self.pool = Pool()
        self.neighbours: list[Neighbour] = []
        self._next = GATEWAY << 32
        self._released: list[Dispatch] = []
        self._num_ends = 0

    async def open(self, folder: Path) -> None:
        """With its store; its sockets lead nowhere."""
        self._service = AdmissionService(deployment_in(folder))
        await self._service.start()
        make = accepted(Hearing("admission", self._service), "admission", Listener(None, None))  # type: ignore[arg-type]  # nothing listens
        link = linked(Hearing("admission", self._service), Identity("admission", "0", 1))
        names = [("gateway", str(GATEWAY)), ("gateway", "8"), ("operator", "1"), ("admission", "1")]
        self.neighbours = [Neighbour(Identity(*name, 1), make, listens=False) for name in names]
        self.neighbours.append(Neighbour(Identity("scheduler", "0", 1), link, listens=True))
        for neighbour in self.neighbours:
            self.join(neighbour)

    def join(self, neighbour: Neighbour) -> None:
        """Connect and say what must be said first."""
        neighbour.connect()
        neighbour.shake()
        if neighbour.identity.service == "scheduler":
            self._num_ends = 0
            self._released.clear()
            neighbour.say(encode_frame(Capacity(1, 1024, 512, counts_ends=True)))
            neighbour.say(encode_frame(Holds([])))
            neighbour.say(encode_frame(Capacity(1, 1024, 512, counts_ends=True)))
        neighbour.listen()

    def honest(self, neighbour: Neighbour, rng: random.Random) -> Message:
        """Requests and their ends."""
        self._released += [each for each in neighbour.heard if isinstance(each, Dispatch)]
        neighbour.heard.clear()
        match neighbour.identity.service:
            case "gateway":
                if rng.random() < 0.2:
                    return Cancel(rng.choice(self.pool.requests or [0]))
                if rng.random() < 0.1:
                    return InvalidRequest(self._next + 3, "acme", "default", "key", "free")
                request, self._next = self._next, self._next + 4
                self.pool.requests = [*self.pool.requests[-MOST_LIVE:], request]
                return some_submit(rng, request)
            case "scheduler":
                if not self._released:
                    return Capacity(1, 1024, 512, counts_ends=True)
                dispatch = self._released[0]
                if rng.random() < 0.5:
                    return Usage(np.array([dispatch.submit.request], np.int64).tobytes())
                self._released.pop(0)
                self._num_ends += 1
                return RequestEnded(dispatch.submit.request, "finished", 3, number=self._num_ends)
            case "admission":
                return PolicyPrepared(rng.randrange(3))
            case _:
                return ReportAsked(rng.randrange(9), rng.choice(("fairness", "usage")))

    def check(self) -> None:
        """Invariants of the core."""
        self._service._core.check()  # noqa: SLF001  the same is asserted of every core in tests

    async def close(self) -> None:
        """Stop it."""
        for neighbour in self.neighbours:
            neighbour.close()
        await self._service.stop()


PLACES: dict[str, Callable[[], Place]] = {
    "scheduler": SchedulerPlace,
    "admission": AdmissionPlace,
    "gateway": GatewayPlace,
    "executor": ExecutorPlace,
}
"""Both services that listen, and both that only connect."""
