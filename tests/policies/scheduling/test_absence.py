"""Requests outlive their executors, and do not wait for ever for the next."""

from typing import Any

import pytest

from policies.commands import Finish, WakeAt
from policies.scheduling.absence import LONGEST_S


def over(world: Any) -> list[Finish]:
    """What ends when the core is woken, as often as it asks for it, until something does."""
    for _ in range(10):
        if ended := [each for each in world.wake() if isinstance(each, Finish)]:
            return ended
    raise AssertionError("nothing ended")


def test_what_no_executor_comes_for_within_ten_minutes_ends_with_what_it_has(world: Any) -> None:
    made = world()
    made.join()
    made.release(1, 20, 100)
    made.release(2, 20, 100)
    for _ in range(5):
        made.end_step()
    made.now += 1.0
    lost_at_s, has = made.now, made.tokens[1]
    made.lose(0)
    made.now += 100.0
    made.release(3, 20, 100)
    assert [(each.request, each.outcome, each.code) for each in over(made)] == [
        (request, "error", "no_capacity") for request in (1, 2, 3)
    ]
    assert made.now == pytest.approx(lost_at_s + LONGEST_S)
    assert (made.finished[1].output_tokens, made.finished[3].output_tokens) == (has, 0)
    # Whoever comes after that waits as long.
    made.now += 50.0
    began_at_s = made.now
    made.release(4, 20, 100)
    over(made)
    assert made.now == pytest.approx(began_at_s + LONGEST_S)


def test_an_executor_that_comes_in_time_goes_on_with_all(world: Any) -> None:
    made = world()
    made.join()
    made.release(1, 20, 30)
    made.end_step()
    made.lose(0)
    made.now += LONGEST_S - 1.0
    made.join(1)
    made.drain()
    assert made.finished[1].outcome == "finished"
    assert made.tokens[1] == 30


def test_nobody_is_woken_for_executors_that_nobody_waits_for(world: Any) -> None:
    made = world()
    made.join()
    assert not any(isinstance(each, WakeAt) for each in made.lose(0) or [])
    assert made.wake_at is None
