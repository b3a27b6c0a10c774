"""Executors from which steps do not come back, and when the core must be woken to notice.

Owns how long is too long: a multiple of what such a step is expected to take. An executor whose first step has not
ended compiles, loads or is dead, and nothing tells which: it has a limit of its own. Knows no sequences.
"""

from collections.abc import Iterable

from policies.commands import Abandon, WakeAt
from policies.scheduling.executor import Executor


def late_at_s(executor: Executor) -> float | None:
    """Core time at which the oldest step in flight is overdue; None: there is none, or nobody watches this executor."""
    limits = executor.step_limits
    if limits is None or not executor.steps:
        return None
    step, seen = executor.steps[0], executor.step_time
    begun_at_s = max(step.planned_at_s, executor.last_ended_s)
    if not seen.num_steps:
        return begun_at_s + limits.first_s
    # The slowest of what is believed: to give up an executor that computes costs all that it holds.
    takes_s = max(step.expected_s or 0.0, seen.mean_s, seen.estimate_s, step.num_tokens * seen.token_s)
    return begun_at_s + max(limits.at_least_s, limits.times * takes_s)


class Watchdog:
    """The one time at which the core is to be woken next, whatever for."""

    def __init__(self) -> None:
        self._wakes_at_s: float | None = None

    def wake(self, executors: Iterable[Executor], also_at_s: float | None) -> list[WakeAt]:
        """Ask for it, unless an earlier time was asked for: each step that ends puts off what is too late, and whoever
        is woken too early asks again.
        """
        times = [also_at_s, *(late_at_s(executor) for executor in executors)]
        at_s = min((time for time in times if time is not None), default=None)
        if at_s is None or (self._wakes_at_s is not None and self._wakes_at_s <= at_s):
            return []
        self._wakes_at_s = at_s
        return [WakeAt(at_s=at_s)]

    def woken(self, executors: Iterable[Executor], now: float) -> list[Abandon]:
        """The time has come: executors to be treated as dead."""
        self._wakes_at_s = None
        abandoned = []
        for executor in executors:
            late = late_at_s(executor)
            if late is not None and late <= now:
                step = executor.steps[0]
                waits_s = now - max(step.planned_at_s, executor.last_ended_s)
                reason = f"step {step.number} has not ended for {waits_s:.1f} s"
                abandoned.append(Abandon(executor=executor.id, reason=reason))
        return abandoned

    def check(self, executors: Iterable[Executor]) -> None:
        """Raise AssertionError if a step is in flight that nobody would miss."""
        for executor in executors:
            late = late_at_s(executor)
            if late is not None and (self._wakes_at_s is None or self._wakes_at_s > late):
                raise AssertionError(f"nobody looks after step {executor.steps[0].number} of executor {executor.id}")
