"""How long steps took and on what, as rows of the recorded traffic: what a step-time model is fitted to.

Owns what a row takes from a step and from an executor's description. Decides nothing.
"""

import time
from collections.abc import Sequence

from engine.interface import EngineInfo
from services.scheduler.executors import StepTokens
from services.traffic.rows import FLEETS, STEPS, FleetRow, StepRow
from services.traffic.store import Store


class Samples:
    """Rows of one scheduler. Without a store nothing is kept."""

    def __init__(self, store: Store | None) -> None:
        self._store = store

    def step_ended(self, step: StepTokens) -> None:
        """A step came back. One in which an executor gave up sequences says nothing about the others."""
        if self._store is None or step.result.failed:
            return
        ended_at_s = step.ended_ns / 1e9
        self._store.add(
            STEPS,
            StepRow(
                time.time(),
                step.executor,
                *step.plan.shape,
                planned_at_s=step.plan.planned_ns / 1e9,
                begun_at_s=ended_at_s - step.step_time_s,
                ended_at_s=ended_at_s,
                heard_at_s=time.monotonic(),
            ),
        )

    def fleet_changed(self, engines: Sequence[EngineInfo]) -> None:
        """An executor came or went. That none is left is no description of any."""
        if self._store is None or not engines:
            return
        first = engines[0]
        self._store.add(
            FLEETS,
            FleetRow(
                unix_s=time.time(),
                num_executors=len(engines),
                description=f"{first.model} in {first.dtype} on {first.device}, attention {first.attention}",
                num_blocks=first.num_blocks,
                block_tokens=first.block_tokens,
                max_sequence_tokens=first.max_sequence_tokens,
                max_steps_in_flight=first.max_steps_in_flight,
                copies_blocks=first.copies_blocks,
            ),
        )

    def close(self) -> None:
        """Write what waits."""
        if self._store is not None:
            self._store.close()
