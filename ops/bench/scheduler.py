"""Time of one step plan, against the least that a heap and a loop can do (`fairlead bench scheduler`).

A cycle of ours is all that the core does between two steps: `StepEnded` in, `Deliver` and the next `StartStep` out,
under each shipped policy with room for 256 decodes, all of them running (one in twenty paid, so due in every step of
those that defer), blocks filling up, each with the key by which others may find it, and thousands of requests waiting.
Limits of a policy that are smaller are raised to 256, and a budget to 512 tokens. The reference has no
policy, no blocks and no result: 256 objects visited in a Python loop that reads and renews a deadline, and one pop and
push on a heap of 10,000. Seconds are CPU time of this process.
"""

import argparse
import gc
import random
import re
import time
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from pathlib import Path

from ops.bench.harness import Row, UnmeasurableError, at_most, interleave
from policies.commands import Command, StartStep
from policies.events import ExecutorJoined, PolicyApplied, Released, Started, StepEnded
from policies.scheduling.core import SchedulerCore
from policies.scheduling.prefixes import KEY_BYTES

POLICIES = Path(__file__).resolve().parents[2] / "policies"
SHIPPED = sorted({path.stem for path in POLICIES.glob("*.yaml")} - {"tenants", "hindsight"})
"""`hindsight` knows the future and runs in replays only."""
LIMITS = re.compile(r"(max_sequences|max_decodes|token_budget|at_least): (\d+)")
NUM_RUNNING = 256
TOKEN_BUDGET = 512
NUM_WAITING = 10_000
FEW, MANY = 1_000, 100_000
CYCLES = 2_000
STEP_S = 0.02
PROMPT_TOKENS = 64
BLOCK_TOKENS = 16
MAX_OUTPUT_TOKENS = 30_000
NUM_BLOCKS = 2_000_000


class Cycle:
    """A core in the middle of its work; `run` measures seconds per cycle."""

    def __init__(self, policy: str, num_waiting: int) -> None:
        self._core = SchedulerCore()
        self._now = 0.0
        self._spent_s = 0.0
        self._random = random.Random(0)
        self._in_flight: list[StartStep] = []
        document = LIMITS.sub(_raised, (POLICIES / f"{policy}.yaml").read_text())
        self._send(Started(wall_s=0.0))
        self._send(PolicyApplied(revision=1, document=document.encode()))
        for request in range(NUM_RUNNING + num_waiting):
            self._send(self._released(request))
        self._send(
            ExecutorJoined(
                executor=0,
                num_blocks=NUM_BLOCKS,
                block_tokens=BLOCK_TOKENS,
                max_sequence_tokens=MAX_OUTPUT_TOKENS * 2,
                copies_blocks=True,
            )
        )
        for _ in range(2 * NUM_RUNNING):
            self._end_step()
        decoding = self._core.snapshot().num_decoding
        if decoding != NUM_RUNNING:
            raise RuntimeError(
                f"under {policy} {decoding} sequences decode, not {NUM_RUNNING}: that is another benchmark"
            )

    def run(self) -> float:
        """Seconds of one cycle, a mean over many."""
        gc.collect()
        gc.freeze()
        self._spent_s = 0.0
        for _ in range(CYCLES):
            self._end_step()
        return self._spent_s / CYCLES

    def _end_step(self) -> None:
        step = self._in_flight.pop(0)
        self._now += STEP_S
        plan = step.plan
        full = (plan.positions + plan.num_tokens) // BLOCK_TOKENS > plan.positions // BLOCK_TOKENS
        keys = [(sequence, self._random.randbytes(KEY_BYTES)) for sequence in plan.sequences[full].tolist()]
        self._send(StepEnded(executor=0, step=step.step, step_time_s=STEP_S, keys=keys))

    def _send(self, event: object) -> list[Command]:
        started = time.process_time()
        commands = self._core.handle(event, self._now)  # type: ignore[arg-type]
        self._spent_s += time.process_time() - started
        self._in_flight += [command for command in commands if isinstance(command, StartStep)]
        return commands

    def _released(self, request: int) -> Released:
        prompt_tokens = PROMPT_TOKENS + request * 7919 % 64
        return Released(
            request=request,
            slo_class="paid" if request % 20 == 0 else "free",
            prompt_tokens=prompt_tokens,
            max_output_tokens=MAX_OUTPUT_TOKENS,
            owner=f"tenant-{request % 100}",
            prompt_keys=self._random.randbytes(KEY_BYTES * -(-prompt_tokens // BLOCK_TOKENS)),
            key_tokens=BLOCK_TOKENS,
        )


def _raised(limit: re.Match[str]) -> str:
    """A limit under which everybody can run; a stage's own (`max_sequences: 1`) and an idle condition stay."""
    knob, value = limit[1], int(limit[2])
    if knob == "token_budget":
        return f"{knob}: {max(value, TOKEN_BUDGET)}"
    return f"{knob}: {NUM_RUNNING if value > 1 else value}"


class _Running:
    __slots__ = ("deadline", "length", "tbt")

    def __init__(self, index: int) -> None:
        self.deadline = index * 0.001
        self.length = index
        self.tbt = 0.1


class HeapAndLoop:
    """The reference: visit everybody who runs, take and put back one who waits."""

    def __init__(self) -> None:
        self._running = [_Running(index) for index in range(NUM_RUNNING)]
        self._waiting = [(index * 7919 % NUM_WAITING, index) for index in range(NUM_WAITING)]
        heapify(self._waiting)
        self._now = 0.0

    def run(self) -> float:
        """Seconds of one cycle, a mean over many."""
        started = time.process_time()
        for _ in range(CYCLES):
            self._cycle()
        return (time.process_time() - started) / CYCLES

    def _cycle(self) -> None:
        self._now += STEP_S
        now = self._now
        due = []
        for sequence in self._running:
            sequence.length += 1
            if sequence.deadline <= now:
                due.append(sequence)
                sequence.deadline = now + sequence.tbt
        key, index = heappop(self._waiting)
        heappush(self._waiting, (key + NUM_WAITING, index))


def run(arguments: argparse.Namespace) -> list[Row]:
    """A step plan against the reference, and against itself with a hundred times as many waiting."""

    def microseconds(run_once: Callable[[], float]) -> Callable[[], float]:
        return lambda: run_once() * 1e6

    reference = microseconds(HeapAndLoop().run)
    rows = []
    for policy in arguments.policy or SHIPPED:
        if policy not in SHIPPED:
            raise UnmeasurableError(f"no policy {policy} ships that runs live; there are {', '.join(SHIPPED)}")
        usual = interleave(microseconds(Cycle(policy, NUM_WAITING).run), reference, rounds=arguments.rounds)
        many, few = Cycle(policy, MANY), Cycle(policy, FEW)
        growth = interleave(microseconds(many.run), microseconds(few.run), rounds=arguments.rounds)
        rows += [
            at_most(f"{policy}: plan against heap and loop", "us", usual, must=2.0, stretch=0.6),
            at_most(f"{policy}: plan, 100,000 waiting against 1,000", "us", growth, must=1.5, stretch=1.2),
        ]
    return rows
