"""The wait of a request is told apart by what it waited for, and the parts are the whole."""

from hypothesis import given
from hypothesis import strategies as st

from policies.admission.nodes import Queued
from policies.admission.turns import Turns


def queued(number: int, arrived_at_s: float = 0.0, limits_s: float = 0.0) -> Queued:
    return Queued(
        number, number, tenant="a", prompt_tokens=1, max_output_tokens=1, arrived_at_s=arrived_at_s, limits_s=limits_s
    )


def test_others_turn_is_fairness_and_ones_own_without_room_is_window() -> None:
    turns = Turns()
    first, second = queued(1), queued(2)
    turns.blocked(first, 1.0)
    turns.blocked(first, 2.0)
    turns.blocked(second, 4.0)
    turns.blocked(first, 5.0)
    assert turns.waits_s(first, 7.0) == {"fairness": 2.0, "window": 5.0}
    assert turns.waits_s(second, 7.0) == {"fairness": 6.0, "window": 1.0}


def test_whoever_is_released_at_once_waited_for_nothing() -> None:
    assert Turns().waits_s(queued(1, 3.0), 3.0) == {}


def test_the_store_is_waited_for_before_the_queue() -> None:
    assert Turns().waits_s(queued(1, 1.0, limits_s=0.5), 1.5) == {"limits": 0.5}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=30), st.integers(0, 3))
def test_the_causes_sum_to_the_wait(events: list[tuple[int, int]], which: int) -> None:
    turns, now = Turns(), 0.0
    waiting = [queued(number) for number in range(4)]
    for number, passed in events:
        turns.blocked(waiting[number], now)
        now += passed
    assert sum(turns.waits_s(waiting[which], now).values()) == now
