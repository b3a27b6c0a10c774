"""What the scheduler tells gateways of how full it is."""

from types import SimpleNamespace

from policies.scheduling.core import SchedulerCore
from services.scheduler.metrics import SchedulerMetrics
from services.wire_parts import Levels


def returned(step_time_s: float, num_prefill_tokens: int, num_decode_tokens: int) -> SimpleNamespace:
    plan = SimpleNamespace(num_prefill_tokens=num_prefill_tokens, num_decode_tokens=num_decode_tokens)
    return SimpleNamespace(step_time_s=step_time_s, plan=plan)


def test_steps_add_up_and_a_scheduler_without_executors_has_no_blocks() -> None:
    metrics = SchedulerMetrics()
    empty = SchedulerCore().snapshot()
    assert metrics.levels(empty, 0) == Levels()
    for step in (returned(0.5, 60, 0), returned(0.25, 4, 3)):
        metrics.step_ended(step, 512)
    assert metrics.levels(empty, 16) == Levels(
        block_tokens=16, num_steps=2, step_s=0.75, prefill_tokens=64, decode_tokens=3
    )
