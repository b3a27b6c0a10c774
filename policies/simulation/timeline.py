"""What a run looked like while it went: queues, KV, the steps and the tenants' service over time.

Owns a bounded number of points, evenly spaced in virtual time. A run that wants none pays nothing for it.
"""

from typing import Any

import numpy as np
from msgspec import Struct

from policies.commands import Command, StartStep
from policies.events import StepEnded
from policies.simulation.driver import SCHEDULER, Simulation
from policies.simulation.step_shape import shape_of

MOST_POINTS = 400
FIRST_INTERVAL_S = 0.01


class Point(Struct):
    """A stretch of time; counts are as it ended, sums are over it."""

    ended_at_s: float
    num_queued: int
    """Requests that admission holds back."""
    num_waiting: int
    """Sequences without KV blocks."""
    num_running: int
    """Sequences with KV blocks."""
    kv_use: float
    """Share of the blocks."""
    num_steps: int
    prefill_tokens: int
    decode_tokens: int
    step_time_s: float
    """Of all its steps together."""
    service: list[int]
    """Prompt and output tokens of each tenant since the start; a prompt counts when its first token came."""

    def absorb(self, later: "Point") -> None:
        """Become the two stretches together."""
        self.num_steps += later.num_steps
        self.prefill_tokens += later.prefill_tokens
        self.decode_tokens += later.decode_tokens
        self.step_time_s += later.step_time_s
        self.ended_at_s, self.service, self.kv_use = later.ended_at_s, later.service, later.kv_use
        self.num_queued, self.num_waiting = later.num_queued, later.num_waiting
        self.num_running = later.num_running


class Timeline:
    """Watches a simulation from when it is made.

    Attributes:
        points: by time.
        tenants: names, in the order of `Point.service`.
    """

    def __init__(self, simulation: Simulation) -> None:
        self.points: list[Point] = []
        numbers: dict[str, int] = {}
        self._tenant = np.array([numbers.setdefault(r.tenant, len(numbers)) for r in simulation.requests], np.int64)
        self._prompt_tokens = np.array([request.prompt_tokens for request in simulation.requests], np.int64)
        self.tenants = list(numbers)
        self._simulation = simulation
        self._interval_s = FIRST_INTERVAL_S
        self._ends_at_s = FIRST_INTERVAL_S
        self._steps = self._prefill_tokens = self._decode_tokens = 0
        self._step_time_s = 0.0
        simulation.observers.append(self._observe)

    def _observe(self, core: str, now: float, event: Any, commands: list[Command]) -> None:
        if core != SCHEDULER:
            return
        for command in commands:
            if isinstance(command, StartStep):
                shape = shape_of(command.plan)
                self._prefill_tokens += shape.prefill_tokens
                self._decode_tokens += shape.decodes
        if isinstance(event, StepEnded):
            self._steps += 1
            self._step_time_s += event.step_time_s
            if now >= self._ends_at_s:
                self._end_stretch(now)

    def _end_stretch(self, now: float) -> None:
        simulation = self._simulation
        seen = simulation.scheduler.snapshot()
        num_tokens = simulation.tokens.num_tokens[1:]
        served = num_tokens + np.where(num_tokens > 0, self._prompt_tokens, 0)
        service = np.bincount(self._tenant, weights=served, minlength=len(self.tenants))
        point = Point(
            ended_at_s=now,
            num_queued=len(simulation.admission.queue.waiting),
            num_waiting=seen.num_waiting,
            num_running=seen.num_running,
            kv_use=seen.used_blocks / seen.total_blocks,
            num_steps=self._steps,
            prefill_tokens=self._prefill_tokens,
            decode_tokens=self._decode_tokens,
            step_time_s=self._step_time_s,
            service=service.astype(np.int64).tolist(),
        )
        self.points.append(point)
        self._steps = self._prefill_tokens = self._decode_tokens = 0
        self._step_time_s = 0.0
        if len(self.points) >= MOST_POINTS:
            for first, second in zip(self.points[::2], self.points[1::2], strict=True):
                first.absorb(second)
            self.points = self.points[::2]
            self._interval_s *= 2
        self._ends_at_s = now + self._interval_s
