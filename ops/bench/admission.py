"""Time of one admission decision, against a bare heap (`fairlead bench admission`).

A decision of ours is what the release loop does for one request: find whose request is next over tenants, projects and
keys, take it out of the backlog, and charge it to each of the three. 1,000 tenants are backlogged; what was taken is
replaced by new requests between the measured batches. The reference is a heap of as many requests: one pop, one counter
updated, one push. Beside it, in the note, a whole cycle of the core: `handle` of an arrival and of an end that lets the
next one in, with the window, the ledger, the class and the commands. Seconds are CPU time of this process.
"""

import argparse
import gc
import time
from collections.abc import Callable
from heapq import heapify, heappop, heappush

import msgspec

from ops.bench.harness import Row, at_most, interleave
from ops.bench.shipped import PATIENT
from policies.admission.core import AdmissionCore
from policies.commands import Command, Release
from policies.events import Arrived, CapacityChanged, PolicyApplied, RequestFinished, Started

NUM_TENANTS = 1_000
FEW, MANY = 1_000, 100_000
BATCH = 100
BATCHES = 100
CYCLES = 5_000
WINDOW_TOKENS = 30_000
MAX_OUTPUT_TOKENS = 200
QUEUE = b"\nqueue: {per_tenant_max: 1000000, total_max: 1000000, ttl_s: 1000000}\n"
DOCUMENT = PATIENT.encode() + QUEUE
Figure = Callable[[], float]


class Backlog:
    """A core with so many requests waiting behind a full window."""

    def __init__(self, num_queued: int) -> None:
        self._core = AdmissionCore()
        self._num_arrived = 0
        self._in_flight: list[int] = []
        self._send(Started(wall_s=0.0))
        self._send(PolicyApplied(revision=1, document=DOCUMENT))
        self._send(CapacityChanged(num_executors=1, kv_tokens=WINDOW_TOKENS // 3, max_sequence_tokens=4096))
        while len(self._core.queue.waiting) < num_queued:
            self._send(self._arrival())
        if self._core.queue.num_backlogged < NUM_TENANTS:
            raise RuntimeError(f"{self._core.queue.num_backlogged} tenants are backlogged, not {NUM_TENANTS}")

    def decide(self) -> float:
        """Microseconds of a decision, a mean over many."""
        queue, cost = self._core.queue, self._core.rules.cost
        order = queue.order
        _settle()
        spent_s = 0.0
        for _ in range(BATCHES):
            taken = []
            started = time.process_time()
            for _ in range(BATCH):
                queued = order.next(queue)
                if queued is None:
                    break
                queue.leave(queued, 0.0)
                amount = cost.whole(queued.prompt_tokens, 0)
                key, project, tenant = queued.leaf.path
                tenant.counter += amount / queued.weight
                project.counter += amount
                key.counter += amount
                taken.append(queued)
            spent_s += time.process_time() - started
            for queued in taken:
                queue.end(queued.leaf, 0.0)
                self._num_arrived += 1
                queued.request, queued.number = 8 * self._num_arrived, self._num_arrived
                queue.push(queued)
        return spent_s / (BATCHES * BATCH) * 1e6

    def cycle(self) -> float:
        """Microseconds of `handle` for an arrival and for an end, a mean over many."""
        arrivals = [self._arrival() for _ in range(CYCLES)]
        _settle()
        started = time.process_time()
        for arrival in arrivals:
            self._send(arrival)
            self._send(RequestFinished(self._in_flight.pop(0), 50))
        return (time.process_time() - started) / CYCLES * 1e6

    def _arrival(self) -> Arrived:
        self._num_arrived += 1
        number = self._num_arrived
        tenant = number * 7919 % NUM_TENANTS
        return Arrived(
            8 * number,
            f"tenant{tenant}",
            "free",
            prompt_tokens=50 + number * 31 % 100,
            max_output_tokens=MAX_OUTPUT_TOKENS,
            weight=1.0 + tenant % 4,
            key=f"key{tenant}",
        )

    def _send(self, event: object) -> list[Command]:
        commands = self._core.handle(event, 0.0)  # type: ignore[arg-type]
        self._in_flight += [command.request for command in commands if isinstance(command, Release)]
        return commands


class _Tenant:
    __slots__ = ("counter",)

    def __init__(self) -> None:
        self.counter = 0.0


class Heap:
    """The reference: a heap of all that wait, by the counter that its tenant had."""

    def __init__(self, num_queued: int) -> None:
        self._tenants = [_Tenant() for _ in range(NUM_TENANTS)]
        self._heap = [
            (float(number * 7919 % num_queued), number, self._tenants[number * 7919 % NUM_TENANTS])
            for number in range(num_queued)
        ]
        heapify(self._heap)
        self._num_arrived = num_queued

    def decide(self) -> float:
        """Microseconds of a pop, an update and a push, a mean over many."""
        _settle()
        heap, number = self._heap, self._num_arrived
        num_queued = len(heap)
        started = time.process_time()
        for _ in range(BATCHES * BATCH):
            key, _, tenant = heappop(heap)
            tenant.counter += 100.0
            number += 1
            heappush(heap, (key + num_queued, number, tenant))
        spent_s = time.process_time() - started
        self._num_arrived = number
        return spent_s / (BATCHES * BATCH) * 1e6


def _settle() -> None:
    gc.collect()
    gc.freeze()


def run(arguments: argparse.Namespace) -> list[Row]:
    """A decision against the reference, and against itself with a hundredth of the backlog."""
    many, few, heap = Backlog(MANY), Backlog(FEW), Heap(MANY)
    against_heap = at_most(
        "decision against heap, 100,000 queued",
        "us",
        interleave(many.decide, heap.decide, rounds=arguments.rounds),
        must=2.0,
        stretch=1.5,
    )
    growth = at_most(
        "decision, 100,000 queued against 1,000",
        "us",
        interleave(many.decide, few.decide, rounds=arguments.rounds),
        must=1.5,
        stretch=1.2,
    )
    note = f"a whole cycle of the core (arrival, end, release): {many.cycle():.1f} us, with 1,000 {few.cycle():.1f} us"
    return [against_heap, msgspec.structs.replace(growth, note=note)]
