"""`admission.refuse_when_late`: who is refused because the first token would come too late, and who is not."""

from math import inf
from typing import Any

import pytest

from policies.admission.lateness import SPARE
from policies.commands import Command, Refuse, WakeAt
from policies.events import (
    Arrived,
    CancelRequested,
    CapacityChanged,
    PolicyApplied,
    RequestFinished,
    SchedulerLost,
    TokensProduced,
    Woke,
)
from tests.policies.admission.test_admission_core import Desk, document, released

FAIRNESS = {"cost": {"kind": "tokens"}}
ON = {"refuse_when_late": True}
TOKENS = 200
"""Of every request here, and each is the prompt and the output in equal parts."""
SPEED = 200.0
FREE_S = 5.0
HOPELESS = 21
"""So many unstarted ones ahead make a request late, whatever it was promised: at one a second, 5 s are over by far."""


def desk(*, window: int = 20_000, **sections: Any) -> Desk:
    """The free class is promised 5 s, the paid one 0.5 s."""
    return Desk(window=window, fairness=FAIRNESS, admission=ON, **sections)


def refused(commands: list[Any]) -> list[int]:
    return [command.request for command in commands if isinstance(command, Refuse)]


def start(at: Desk, request: int, now: float) -> list[Command]:
    return at.tell(TokensProduced([request]), now)


def measured(at: Desk) -> Desk:
    """Ten requests have started in ten seconds, and an eleventh has not; it is 10 s."""
    for request in range(1, 12):
        assert released(at.arrive(request)) == [request]
    for request in range(1, 11):
        assert not refused(start(at, request, float(request)))
    assert at.core.lateness.speed.per_s == pytest.approx(SPEED)
    return at


def crowd(at: Desk, first: int = 100) -> int:
    """Requests come until one is refused: its number."""
    request = first
    while not refused(at.arrive(request)):
        request += 1
        assert request < first + HOPELESS
    return request


def test_nobody_is_refused_before_anything_was_measured() -> None:
    at = desk()
    assert [released(at.arrive(request)) for request in range(1, 101)] == [[request] for request in range(1, 101)]


def test_the_wait_is_what_is_ahead_over_the_speed_of_late_and_a_little_to_spare() -> None:
    at = measured(desk())
    num_ahead = crowd(at) - 100 + 1
    wait_s = SPARE * num_ahead * TOKENS / SPEED
    assert wait_s > FREE_S >= wait_s - SPARE * TOKENS / SPEED
    (refusal,) = at.arrive(999)
    assert (refusal.code, refusal.tenant) == ("would_be_late", "acme")
    assert wait_s - FREE_S <= refusal.retry_after_s <= 1.2 * max(1.0, wait_s - FREE_S)
    assert refusal.message == (
        f'The first token would come after about {wait_s:.1f} s, and class "free" is promised it within 5 s'
        f" (admission.refuse_when_late); retry in {refusal.retry_after_s:.0f} s."
    )


def test_those_who_are_told_the_least_wait_do_not_come_back_together() -> None:
    at = measured(desk())
    assert released(at.arrive(100, prompt=155, output=155)) == [100]
    waits_s = [at.arrive(request)[0].retry_after_s for request in range(1000, 1020)]
    assert max(waits_s) <= 1.2
    assert len(set(waits_s)) == len(waits_s)


def test_a_class_that_is_promised_more_is_refused_sooner() -> None:
    at = measured(desk())
    assert refused(at.arrive(100, tier="paid")) == [100]
    assert released(at.arrive(101)) == [101]


def test_with_nothing_ahead_nobody_is_refused_however_slow_the_last_ones_were() -> None:
    at = measured(desk())
    start(at, 11, 1000.0)
    assert at.core.lateness.speed.per_s < SPEED
    assert released(at.arrive(100, tier="paid")) == [100]


def test_a_faster_second_is_believed_at_once_and_a_slower_one_by_half() -> None:
    at = measured(desk())
    at.arrive(100)
    start(at, 11, 12.0)
    assert at.core.lateness.speed.per_s == pytest.approx(SPEED * 0.75)
    at.arrive(101)
    at.tell(TokensProduced([100, 101]), 13.0)
    assert at.core.lateness.speed.per_s == pytest.approx(2 * SPEED)


def test_without_the_knob_nobody_is_refused() -> None:
    at = measured(desk())
    crowd(at)
    at.tell(PolicyApplied(2, document(fairness={"window_tokens": 20_000, **FAIRNESS})))
    assert released(at.arrive(999, tier="paid")) == [999]


def test_another_price_forgets_the_speed_and_another_knob_does_not() -> None:
    at = measured(desk())
    fairness = {"window_tokens": 20_000, **FAIRNESS}
    at.tell(PolicyApplied(2, document(fairness=fairness, admission=ON, queue={"ttl_s": 9})))
    assert at.core.lateness.speed.per_s == pytest.approx(SPEED)
    at.tell(PolicyApplied(3, document(fairness={"window_tokens": 20_000}, admission=ON)))
    assert at.core.lateness.speed.per_s == 0.0


def test_where_short_prompts_start_first_longer_ones_are_not_ahead_of_them() -> None:
    stages = [{"decode": {}}, {"prefill": {"from": "waiting", "order": ["prompt_tokens"]}}]
    at = measured(desk(batching={"stages": stages}))
    crowd(at)
    assert refused(at.arrive(998, prompt=100)) == [998]
    assert released(at.arrive(999, prompt=10)) == [999]


def test_what_waits_before_it_counts_too_by_its_place_under_the_kind_of_fairness() -> None:
    at = measured(desk(window=11 * TOKENS))
    refused_first = crowd(at)
    assert at.core.queue.waiting.keys() == set(range(100, refused_first))
    # Another tenant's turn comes before the many of this one.
    assert not refused(at.arrive(999, tenant="globex"))


def test_whoever_waits_is_refused_when_the_promise_can_no_longer_be_kept() -> None:
    at = desk(window=TOKENS)
    at.arrive(1)
    at.core.handle(Arrived(2, "acme", "free", 100, 100), 1.0)
    assert WakeAt(1.0 + FREE_S) in at.tell(Woke(), FREE_S)
    assert refused(at.tell(Woke(), 1.0 + FREE_S)) == [2]
    assert not at.core.queue.waiting


def test_whoever_is_next_and_late_by_then_is_refused_and_the_next_is_released() -> None:
    at = measured(desk(window=11 * TOKENS))
    assert not refused(at.arrive(101))
    late = at.tell(RequestFinished(1, 100), 10.0 + FREE_S - 0.5)
    assert (refused(late), released(late)) == ([101], [])
    assert not refused(at.arrive(102))


def test_time_without_executors_is_nobodys_lateness() -> None:
    at = desk(kv_tokens=0)
    at.arrive(1)
    assert not refused(at.tell(Woke(), 50.0))
    assert released(at.tell(CapacityChanged(1, 10_000, 2000), 55.0)) == [1]
    at.tell(SchedulerLost(), 56.0)
    at.arrive(2)
    assert not refused(at.tell(Woke(), 80.0))
    assert released(at.tell(CapacityChanged(1, 10_000, 2000), 90.0)) == [2]


def test_whoever_waited_through_an_outage_has_its_time_from_its_end_on() -> None:
    at = desk(window=TOKENS)
    at.arrive(1)
    at.arrive(2)
    at.tell(CapacityChanged(0, 0, 0), 3.0)
    assert not refused(at.tell(Woke(), 20.0))
    at.tell(CapacityChanged(1, 10_000, 2000), 30.0)
    assert not refused(at.tell(Woke(), 30.0 + FREE_S - 0.1))
    assert refused(at.tell(Woke(), 30.0 + FREE_S)) == [2]


def test_what_ended_without_a_token_is_no_longer_ahead() -> None:
    at = measured(desk())
    last = crowd(at)
    for request in [11, *range(100, last)]:
        at.finish(request, 0, "cancelled")
    assert released(at.arrive(999, tier="paid")) == [999]


def test_times_of_those_who_left_are_not_kept() -> None:
    at = desk(window=20_000)
    for request in range(1, 1001):
        at.arrive(request)
        at.finish(request, 0, "cancelled")
    assert len(at.core.lateness._due) < 100


def test_whoever_was_let_in_before_is_not_refused_when_it_is_sent_again() -> None:
    at = measured(desk())
    crowd(at)
    assert released(at.arrive(999, tier="paid", resent=True, waited_s=4.0)) == [999]


def test_whoever_left_and_comes_again_is_not_held_to_the_time_of_its_first_stay() -> None:
    at = desk(window=TOKENS)
    at.arrive(1)
    at.arrive(2)
    at.tell(CancelRequested(2), 1.0)
    at.arrive(2, resent=True, waited_s=1.0)
    assert not refused(at.tell(Woke(), FREE_S + 1.0))


def test_many_who_come_at_once_are_believed_to_start_together_until_somebody_has_waited() -> None:
    at = measured(desk())
    start(at, 11, 10.0)
    assert [released(at.arrive(request)) for request in range(100, 130)] == [[request] for request in range(100, 130)]
    at.now = 10.0 + FREE_S / 4
    assert refused(at.arrive(999)) == [999]


AFTER_S = 10.0
STANDING = {"refuse_when_late": {"after_s": AFTER_S}}


def stuck(**sections: Any) -> Desk:
    """One request fills the window from 0 s on, and the speed has been measured before."""
    at = Desk(window=TOKENS, fairness=FAIRNESS, admission=STANDING, **sections)
    at.arrive(1)
    return at


def test_a_burst_that_waits_for_less_than_the_time_given_is_served_late_and_refused_to_nobody() -> None:
    at = stuck()
    for request in range(2, 6):
        assert not refused(at.arrive(request))
    for request in range(1, 5):
        now = request * (FREE_S + AFTER_S - 0.1) / 4
        start(at, request, now)
        assert released(at.tell(RequestFinished(request, 100), now)) == [request + 1]
    assert not refused(start(at, 5, now))
    # Nobody waits any more: the next burst is another.
    at.now = now + 1
    assert not refused(at.tell(RequestFinished(5, 100)))
    assert at.core.lateness._standing.begins_s == inf


def test_whoever_still_waits_when_most_have_been_late_for_the_time_given_is_refused_at_once() -> None:
    at = stuck()
    for request in range(2, 5):
        at.arrive(request)
    assert WakeAt(FREE_S) in at.core.handle(Woke(), 0.0)
    assert WakeAt(FREE_S + AFTER_S) in at.tell(Woke(), FREE_S)
    assert not refused(at.tell(Woke(), FREE_S + AFTER_S - 0.1))
    assert refused(at.tell(Woke(), FREE_S + AFTER_S)) == [2, 3, 4]


def test_nobody_is_refused_on_arrival_or_turn_before_a_load_has_lasted() -> None:
    at = stuck()
    at.arrive(2)
    start(at, 1, 1.0)
    at.now = FREE_S + 1.0
    assert not refused(at.tell(Woke()))
    assert not refused(at.arrive(3, tier="paid"))
    assert released(at.finish(1, 100)) == [2]


def test_those_in_time_are_a_break() -> None:
    at = Desk(window=20_000, fairness=FAIRNESS, admission=STANDING)
    for request in range(1, 4):
        at.arrive(request)
    at.tell(Woke(), FREE_S)
    assert at.core.lateness._standing.begins_s == FREE_S + AFTER_S
    for request in range(4, 7):
        at.arrive(request)
        start(at, request, FREE_S + 1.0)
    assert at.core.lateness._standing.begins_s == inf


def test_a_policy_that_promises_more_time_lets_those_wait_who_were_late() -> None:
    at = stuck()
    at.arrive(2)
    at.tell(Woke(), FREE_S)
    classes = [{"name": "paid", "ttft_s": 30.0, "tbt_s": 0.1}, {"name": "free", "ttft_s": 30.0, "tbt_s": 0.5}]
    fairness = {"window_tokens": TOKENS, **FAIRNESS}
    at.tell(PolicyApplied(2, document(fairness=fairness, admission=STANDING, classes=classes)), 6.0)
    assert not refused(at.tell(Woke(), FREE_S + AFTER_S))


def test_a_request_that_leaves_before_its_first_token_makes_nothing_slow_while_nobody_is_there() -> None:
    at = measured(desk())
    at.finish(11, 0, "cancelled")
    at.now = 3600.0
    at.arrive(100)
    start(at, 100, 3600.5)
    assert at.core.lateness.speed.per_s == pytest.approx(SPEED)


def test_a_knob_that_was_off_begins_anew() -> None:
    at = stuck()
    at.tell(Woke(), FREE_S)
    fairness = {"window_tokens": TOKENS, **FAIRNESS}
    at.tell(PolicyApplied(2, document(fairness=fairness)), 6.0)
    at.tell(PolicyApplied(3, document(fairness=fairness, admission=STANDING)), 7.0)
    assert at.core.lateness._standing.begins_s == inf
