"""Events in, commands out."""

from typing import Any

import pytest
import yaml

from policies.admission.core import AdmissionCore
from policies.admission.evenness import jain
from policies.commands import CancelReleased, Command, Queue, Refuse, Release, Settle, WakeAt, Withdraw
from policies.events import (
    Arrived,
    CancelRequested,
    CapacityChanged,
    PolicyApplied,
    RequestFinished,
    SchedulerLost,
    Started,
    TokensProduced,
    Woke,
)

CLASSES = [{"name": "paid", "ttft_s": 0.5, "tbt_s": 0.1}, {"name": "free", "ttft_s": 5.0, "tbt_s": 0.5}]
CLASSIFY = [{"when": {"tier": "paid"}, "class": "paid"}, {"class": "free"}]


def document(**sections: Any) -> bytes:
    policy = {
        "version": 1,
        "name": "test",
        "classes": CLASSES,
        "classify": CLASSIFY,
        "batching": {"stages": [{"decode": {}}, {"prefill": {"from": "waiting"}}]},
        **sections,
    }
    return yaml.safe_dump(policy).encode()


class Desk:
    """An admission core with a short way to say what happens to it; checked after every event."""

    def __init__(self, *, window: int | str = 1000, kv_tokens: int = 10_000, **sections: Any) -> None:
        self.core = AdmissionCore()
        self.now = 0.0
        self.tell(Started(wall_s=0.0))
        fairness = {"window_tokens": window, **sections.pop("fairness", {})}
        self.sections = {"fairness": fairness, **sections}
        self.tell(PolicyApplied(1, document(**self.sections)))
        if kv_tokens:
            self.tell(CapacityChanged(num_executors=1, kv_tokens=kv_tokens, max_sequence_tokens=2000))

    def tell(self, event: Any, now: float | None = None) -> list[Command]:
        self.now = self.now if now is None else now
        commands = self.core.handle(event, self.now)
        self.core.check()
        return commands

    def arrive(
        self, request: int, tenant: str = "acme", prompt: int = 100, output: int = 100, **more: Any
    ) -> list[Any]:
        event = Arrived(request, tenant, more.pop("tier", "free"), prompt, output, **more)
        return [command for command in self.tell(event) if not isinstance(command, WakeAt | Queue)]

    def finish(self, request: int, output_tokens: int, outcome: str = "finished") -> list[Command]:
        return self.tell(RequestFinished(request, output_tokens, outcome))

    def counter(self, tenant: str) -> float:
        return self.core.queue.accounts[tenant].counter


def released(commands: list[Any]) -> list[int]:
    return [command.request for command in commands if isinstance(command, Release)]


def told(release: Any) -> tuple[int, str, float, str]:
    """Who, as what, after how long, why."""
    return release.request, release.slo_class, release.waited_s, release.reason


def test_a_request_that_fits_is_released_at_once_with_its_class_and_reason() -> None:
    assert Desk().arrive(1, tier="paid") == [Release(1, "paid", 0.0, "least counter", counter=100.0)]


def test_the_window_counts_every_choice_and_the_prompt_once() -> None:
    desk = Desk(window=500)
    assert released(desk.arrive(10, prompt=100, output=100, num_choices=4)) == [10]
    assert desk.core.window.reserved_tokens == 500
    assert released(desk.arrive(20, prompt=1, output=1)) == []
    assert released(desk.finish(10, 400)) == [20]


def test_a_request_larger_than_the_window_runs_alone() -> None:
    desk = Desk(window=150)
    desk.arrive(1, prompt=50, output=50)
    assert released(desk.arrive(2, prompt=1000, output=500)) == []
    assert told(desk.finish(1, 50)[1]) == (2, "free", 0.0, "alone: larger than the window")
    assert released(desk.arrive(3, prompt=1, output=1)) == []
    assert released(desk.finish(2, 500)) == [3]


def test_max_requests_bounds_the_count_whatever_the_sizes() -> None:
    desk = Desk(fairness={"max_requests": 2})
    assert [released(desk.arrive(request, prompt=1, output=1)) for request in (1, 2, 3)] == [[1], [2], []]


def test_an_automatic_window_is_the_pool_without_the_watermark() -> None:
    assert Desk(window="auto", kv_tokens=1015, kv={"watermark": 0.01}).core.window.limit_tokens == 1005
    assert Desk(window={"pools": 2.5}, kv_tokens=1015, kv={"watermark": 0.01}).core.window.limit_tokens == 2512
    by_arrival = Desk(window={"pools": 2.5}, kv_tokens=1000, fairness={"kind": "fcfs"}, kv={"watermark": 0.0})
    assert by_arrival.core.window.limit_tokens == 2500


def test_by_arrival_an_automatic_window_is_open_so_that_the_scheduler_can_order_all() -> None:
    desk = Desk(window="auto", kv_tokens=1000, fairness={"kind": "fcfs", "max_requests": 3})
    assert [released(desk.arrive(request, prompt=900, output=900)) for request in (1, 2, 3, 4)] == [[1], [2], [3], []]
    assert Desk(window=1000, fairness={"kind": "fcfs"}).core.window.limit_tokens == 1000


def test_the_head_that_does_not_fit_is_not_bypassed() -> None:
    desk = Desk(window=300)
    desk.arrive(1, prompt=100, output=100)
    desk.arrive(2, tenant="big", prompt=200, output=90)
    assert released(desk.arrive(3, tenant="small", prompt=1, output=1)) == []


def test_the_prompt_is_charged_at_release_and_each_token_once() -> None:
    desk = Desk()
    desk.arrive(1, prompt=100, output=10, weight=2.0)
    assert desk.counter("acme") == 50
    desk.tell(TokensProduced([1]))
    desk.tell(TokensProduced([1, 77]))
    assert desk.counter("acme") == 52


def test_tokens_taken_off_by_a_stop_string_are_refunded() -> None:
    desk = Desk()
    desk.arrive(1, prompt=10, output=10)
    desk.tell(TokensProduced([1]))
    desk.tell(TokensProduced([1]))
    assert desk.finish(1, 1) == [Settle(1, "acme", 10, 1, "finished")]
    assert desk.counter("acme") == 10 + 2 * 1


def test_tokens_whose_usage_never_came_are_charged_at_the_end() -> None:
    desk = Desk()
    desk.arrive(1, prompt=10, output=10)
    desk.finish(1, 5)
    assert desk.counter("acme") == 10 + 2 * 5


def test_a_failure_before_the_first_token_gives_the_prompt_back() -> None:
    desk = Desk()
    desk.arrive(1, prompt=10, output=10)
    assert desk.finish(1, 0, "error") == [Settle(1, "acme", 0, 0, "error")]
    assert desk.counter("acme") == 0


def test_a_failure_after_tokens_keeps_what_was_delivered() -> None:
    desk = Desk()
    desk.arrive(1, prompt=10, output=10)
    desk.tell(TokensProduced([1]))
    assert desk.finish(1, 1, "error") == [Settle(1, "acme", 10, 1, "error")]
    assert desk.counter("acme") == 12


def test_a_second_end_of_the_same_request_changes_nothing() -> None:
    desk = Desk()
    desk.arrive(1)
    desk.finish(1, 5)
    counter = desk.counter("acme")
    assert desk.finish(1, 5) == []
    assert desk.counter("acme") == counter


def test_a_repeated_arrival_is_ignored() -> None:
    desk = Desk(window=200)
    assert len(desk.arrive(1)) == 1
    assert desk.arrive(1) == []
    desk.arrive(2)
    assert desk.arrive(2) == []
    assert len(desk.core.queue.waiting) == 1


def test_a_tenant_that_was_quiet_gets_no_credit_for_it() -> None:
    desk = Desk(window=200)
    for request in range(1, 6):
        desk.arrive(request, "flood")
    for request in range(1, 5):
        desk.finish(request, 100)
    desk.arrive(20, "quiet")
    assert desk.counter("quiet") == desk.counter("flood")


def test_the_lift_never_lowers_a_debt() -> None:
    desk = Desk(window=400)
    desk.arrive(1, "debtor", prompt=100, output=100)
    desk.arrive(2, "other", prompt=50, output=150)
    desk.tell(TokensProduced([1] * 40))
    desk.arrive(3, "other")
    desk.arrive(4, "debtor")
    assert (desk.counter("other"), desk.counter("debtor")) == (150, 180)


def test_with_nobody_waiting_a_newcomer_is_lifted_to_the_last_that_left() -> None:
    desk = Desk()
    desk.arrive(1, "flood", prompt=300)
    desk.finish(1, 10)
    desk.arrive(2, "new", prompt=10)
    assert desk.counter("new") == 300 + 2 * 10 + 10


def test_the_smallest_counter_goes_next_and_age_breaks_ties() -> None:
    desk = Desk(window=200)
    desk.arrive(1, "a")
    desk.arrive(2, "a")
    desk.arrive(3, "b")
    desk.arrive(4, "c")
    order = [1]
    for _ in range(3):
        order += released(desk.finish(order[-1], 100))
    assert order == [1, 3, 4, 2]


def test_fcfs_releases_by_arrival_whatever_the_counters() -> None:
    desk = Desk(window=200, fairness={"kind": "fcfs"})
    for request, tenant in ((1, "a"), (2, "a"), (3, "a"), (4, "b")):
        desk.arrive(request, tenant)
    order = [released(desk.finish(request, 100)) for request in (1, 2, 3)]
    assert order == [[2], [3], [4]]


def test_counters_survive_a_change_of_kind_and_queued_requests_follow_the_new_rules() -> None:
    desk = Desk(window=200)
    for request, tenant in ((1, "a"), (2, "a"), (3, "b")):
        desk.arrive(request, tenant)
    before = desk.counter("a")
    rules = [{"class": "paid"}]
    desk.tell(PolicyApplied(2, document(classify=rules, fairness={"kind": "fcfs", "window_tokens": 200})))
    assert desk.core.revision == 2
    assert desk.counter("a") == before
    assert told(desk.finish(1, 100)[1]) == (2, "paid", 0.0, "oldest")


def test_a_wider_window_lets_queued_requests_in_at_once() -> None:
    desk = Desk(window=200)
    desk.arrive(1)
    desk.arrive(2)
    assert released(desk.tell(PolicyApplied(2, document(fairness={"window_tokens": 400})))) == [2]


def test_a_price_change_leaves_running_requests_at_their_price() -> None:
    desk = Desk(window=1000)
    desk.arrive(1, prompt=100, output=10)
    dearer = {"window_tokens": 1000, "cost": {"kind": "weighted_tokens", "prompt": 1, "output": 20}}
    desk.tell(PolicyApplied(2, document(fairness=dearer)))
    desk.tell(TokensProduced([1]))
    assert desk.counter("acme") == 102
    assert desk.core.bound == 20 * 110


def test_a_prompt_longer_than_the_model_is_refused_with_both_numbers() -> None:
    (refusal,) = Desk().arrive(1, prompt=1990, output=20)
    assert isinstance(refusal, Refuse)
    assert refusal.code == "context_length_exceeded"
    assert "2000 tokens" in refusal.message
    assert "2010 (1990 in the prompt, 20 for the output)" in refusal.message


def test_a_request_that_came_before_the_first_executor_is_refused_when_none_can_hold_it() -> None:
    desk = Desk(kv_tokens=0)
    assert desk.arrive(1, prompt=5000) == []
    assert desk.arrive(2) == []
    commands = desk.tell(CapacityChanged(num_executors=1, kv_tokens=1000, max_sequence_tokens=300))
    assert [type(command) for command in commands] == [Refuse, Release]


@pytest.mark.parametrize(
    ("queue", "words"),
    [
        ({"per_tenant_max": 1}, 'Tenant "acme" already has 1 requests waiting (queue.per_tenant_max is 1)'),
        ({"total_max": 1}, "1 requests are waiting (queue.total_max is 1)"),
    ],
)
def test_a_full_queue_refuses_with_the_time_it_needs_to_drain(queue: dict[str, int], words: str) -> None:
    desk = Desk(window=200, queue=queue)
    desk.arrive(1, output=100)
    for step in range(1, 51):
        desk.tell(TokensProduced([1]), now=step * 0.1)
    desk.arrive(2)
    (refusal,) = desk.arrive(3)
    assert refusal.code == "queue_full"
    assert words in refusal.message
    # 300 cost units wait and about 20 a second are served (the first second also holds the prompt).
    assert 4 <= refusal.retry_after_s <= 15 * 1.2


def test_whoever_had_waited_before_it_was_sent_again_is_refused_when_its_own_time_is_up() -> None:
    desk = Desk(window=200, queue={"ttl_s": 60})
    desk.arrive(1)
    desk.arrive(2)
    assert desk.tell(Arrived(3, "acme", "free", 100, 100, waited_s=55.0, resent=True), now=1.0)[-1] == WakeAt(6.0)
    desk.tell(CancelRequested(3), now=2.0)
    desk.tell(Arrived(3, "acme", "free", 100, 100, waited_s=50.0, resent=True), now=2.0)
    assert desk.tell(Woke(), now=6.0) == [WakeAt(12.0)]
    (refusal, wake) = desk.tell(Woke(), now=12.0)
    assert (refusal.request, refusal.code, wake) == (3, "queue_timeout", WakeAt(60.0))


def test_a_request_that_waits_too_long_is_refused_when_its_time_is_up() -> None:
    desk = Desk(window=200, queue={"ttl_s": 5})
    desk.arrive(1)
    assert desk.tell(Arrived(2, "acme", "free", 100, 100), now=1.0)[1:] == [WakeAt(6.0)]
    assert [type(one) for one in desk.tell(Arrived(3, "acme", "free", 100, 100), now=2.0)] == [Queue]
    (refusal, again) = desk.tell(Woke(), now=6.0)
    assert isinstance(refusal, Refuse)
    assert (refusal.request, refusal.code) == (2, "queue_timeout")
    assert "waited 5 s" in refusal.message
    assert again == WakeAt(7.0)


def test_a_wake_up_that_comes_early_asks_for_the_same_time_again() -> None:
    desk = Desk(window=200, queue={"ttl_s": 5})
    desk.arrive(1)
    desk.arrive(2)
    assert desk.tell(Woke(), now=4.999) == [WakeAt(5.0)]


def test_without_executors_requests_wait_for_the_ttl_and_then_learn_why() -> None:
    desk = Desk(kv_tokens=0, queue={"ttl_s": 5})
    assert desk.arrive(1) == []
    (refusal,) = desk.tell(Woke(), now=5.0)
    assert isinstance(refusal, Refuse)
    assert (refusal.code, refusal.retry_after_s) == ("no_capacity", 1.0)
    assert "5 s" in refusal.message
    desk.now = 6.0
    assert desk.arrive(2)[0].code == "no_capacity"


def test_a_queued_request_that_is_cancelled_is_withdrawn() -> None:
    desk = Desk(window=200)
    desk.arrive(1)
    desk.arrive(2)
    assert desk.tell(CancelRequested(2)) == [Withdraw(2, "client_gone")]
    assert desk.tell(CancelRequested(2)) == []


def test_a_cancel_of_a_released_request_is_passed_on_once_and_settled_at_its_end() -> None:
    desk = Desk()
    desk.arrive(1)
    assert desk.tell(CancelRequested(1, "slow_reader")) == [CancelReleased(1, "slow_reader")]
    assert desk.tell(CancelRequested(1)) == []
    assert desk.finish(1, 0, "cancelled") == [Settle(1, "acme", 100, 0, "cancelled")]


def test_losing_the_scheduler_settles_what_was_delivered_and_holds_the_rest_back() -> None:
    desk = Desk(window=400)
    for request in (1, 2, 3):
        desk.arrive(request)
    desk.tell(TokensProduced([1]))
    assert desk.tell(SchedulerLost()) == [
        Settle(1, "acme", 100, 1, "scheduler_lost"),
        Settle(2, "acme", 0, 0, "scheduler_lost"),
    ]
    assert desk.core.window.reserved_tokens == 0
    back = CapacityChanged(num_executors=1, kv_tokens=1000, max_sequence_tokens=2000)
    assert released(desk.tell(back)) == [3]


def test_an_event_before_the_first_policy_says_what_is_missing() -> None:
    with pytest.raises(RuntimeError, match="needs a PolicyApplied"):
        AdmissionCore().handle(Arrived(1, "acme", "free", 1, 1), 0.0)


def test_the_meter_reads_gap_bound_and_jain() -> None:
    desk = Desk(window=400)
    assert desk.core.gap_ratio == 0.0
    for request, tenant in ((1, "a"), (2, "b"), (3, "a"), (4, "b")):
        desk.arrive(request, tenant)
    desk.tell(TokensProduced([1]))
    assert (desk.core.gap, desk.core.bound) == (2.0, 800.0)
    assert desk.core.gap_ratio == 2 / 800
    assert 0.999 < jain(account.counter for account in desk.core.queue.backlogged()) < 1.0


def test_a_request_without_output_costs_its_prompt() -> None:
    desk, other = Desk(), Desk()
    assert released(desk.arrive(1, prompt=100, output=0)) == [1]
    desk.tell(TokensProduced([]))
    assert Settle(1, "acme", 100, 0, "finished") in desk.finish(1, 0)
    other.arrive(1, prompt=100, output=1)
    assert desk.counter("acme") == other.counter("acme") > 0
    other.tell(TokensProduced([1]))
    assert desk.counter("acme") < other.counter("acme")
