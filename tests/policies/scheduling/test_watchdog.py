"""Executors that do not answer: from when on they are treated as dead, and what becomes of what they held."""

from collections.abc import Callable
from typing import Any

import pytest

from policies.commands import Abandon, WakeAt
from policies.events import StepEnded, StepLimits

LIMITS = StepLimits(at_least_s=5.0, times=20.0, first_s=600.0)


def of(kind: type[Any], commands: list[Any]) -> list[Any]:
    return [command for command in commands if isinstance(command, kind)]


@pytest.fixture
def working(world: Any) -> Callable[..., Any]:
    """A function: an executor that has answered some steps and has another one."""

    def make(step_s: float = 0.01, limits: StepLimits | None = LIMITS, **options: int) -> Any:
        made = world(step_s=step_s)
        made.join(step_limits=limits, **options)
        made.release(1, 20, 100)
        for _ in range(10):
            made.end_step()
        return made

    return make


def abandoned_at_s(world: Any) -> float:
    """Core time at which the executor, which answers no more, is given up."""
    while not of(Abandon, world.wake()):
        assert world.now < 1e6
    return world.now


def test_an_executor_that_does_not_answer_for_five_seconds_is_given_up_for_another(
    working: Any,
) -> None:
    world = working()
    before, ended_at_s = world.tokens[1], world.now
    assert abandoned_at_s(world) == pytest.approx(ended_at_s + 5.0)
    assert 0 not in world.core.executors
    world.join(1, step_limits=LIMITS)
    assert next(plan.plan.starts for plan in world.plans if plan.executor == 1) == [1]
    world.drain()
    assert world.tokens[1] == 100
    assert world.token_times[1][before] > ended_at_s + 5.0
    assert world.finished[1].outcome == "finished"


def test_a_step_may_take_twenty_times_as_long_as_steps_do(working: Any) -> None:
    world = working(step_s=1.0)
    ended_at_s = world.now
    assert abandoned_at_s(world) == pytest.approx(ended_at_s + 20.0)


def test_a_step_of_many_tokens_may_take_as_much_longer(working: Any) -> None:
    world = working(step_s=0.1, max_steps_in_flight=1)
    world.release(2, 3000, 10)
    world.end_step()
    assert world.plans[-1].plan.num_tokens.sum() == 512
    ended_at_s = world.now
    # Eleven steps of 0.1 s had 30 tokens between them, and this one has 512.
    assert abandoned_at_s(world) == pytest.approx(ended_at_s + 20 * 512 * 11 * 0.1 / 30)


def test_the_first_step_may_compile(world: Any) -> None:
    world = world()
    world.join(step_limits=LIMITS)
    world.release(1, 20, 100)
    assert abandoned_at_s(world) == pytest.approx(600.0)


def test_steps_that_end_put_it_off_without_asking_to_be_woken_each_time(working: Any) -> None:
    world = working()
    wakes = [of(WakeAt, world.end_step()) for _ in range(50)]
    assert not any(wakes)
    ended_at_s = world.now
    (again,) = of(WakeAt, world.wake())
    assert again.at_s == pytest.approx(ended_at_s + 5.0)


def test_an_idle_executor_is_missed_by_nobody(working: Any) -> None:
    world = working()
    world.drain()
    assert world.wake() == []
    assert 0 in world.core.executors


def test_whoever_sets_no_limits_is_not_woken(working: Any) -> None:
    world = working(limits=None)
    assert world.wake_at is None


def test_what_a_given_up_executor_still_sends_is_ignored(working: Any) -> None:
    world = working()
    late = world.executors[0].steps[0][0].step
    abandoned_at_s(world)
    assert world.send(StepEnded(executor=0, step=late, step_time_s=9.0, ended=[])) == []


def test_the_reason_names_the_step_and_how_long_it_has_been(working: Any) -> None:
    world = working()
    world.now += 7.0
    (abandon,) = of(Abandon, world.wake())
    assert (abandon.executor, abandon.reason) == (0, "step 11 has not ended for 7.0 s")
