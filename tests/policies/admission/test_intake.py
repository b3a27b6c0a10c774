"""What a request takes of its limits, from arrival to its end: the table of the fairness specification, 6.3."""

from typing import Any

import pytest

from policies.admission.limits.algorithms import NS_PER_S
from policies.admission.limits.book import LimitBook
from policies.admission.limits.items import LimitItem
from policies.commands import Adjust, Command, Counted, Queue, Refuse, Release, Reserve, WakeAt, Withdraw
from policies.events import (
    Arrived,
    CancelRequested,
    CapacityChanged,
    Invalid,
    OverLimit,
    PolicyApplied,
    RequestFinished,
    Reserved,
    SchedulerLost,
    TokensProduced,
    Woke,
)
from tests.policies.admission.test_admission_core import Desk, document, released

REQUESTS = {"scope": "key", "dimension": "requests", "rate_per_min": 60}
PROMPT = {"scope": "project", "dimension": "prompt_tokens", "rate_per_min": 1000}
OUTPUT = {"scope": "tenant", "dimension": "output_tokens", "rate_per_min": 1000}
TOTAL = {"scope": "tenant", "dimension": "total_tokens", "rate_per_min": 2000}
OPEN = {"scope": "tenant", "dimension": "concurrency", "max": 3}
QUEUED = {"scope": "tenant", "dimension": "queued", "max": 2}
ALL = [REQUESTS, PROMPT, OUTPUT, TOTAL, OPEN, QUEUED]
NOTHING = {"requests": 0, "prompt_tokens": 0, "output_tokens": 0, "total_tokens": 0, "concurrency": 0, "queued": 0}


class Gate(Desk):
    """A core beside its limits. Everything happens at one instant unless a test says otherwise."""

    def __init__(self, *limits: dict[str, Any], **more: Any) -> None:
        self.book = LimitBook()
        self.items: dict[str, LimitItem] = {}
        self.asked: list[int] = []
        """How many items each reservation had."""
        self.answers = True
        super().__init__(limits=list(limits), **more)

    def tell(self, event: Any, now: float | None = None) -> list[Command]:
        commands = super().tell(event, now)
        told = []
        for command in commands:
            match command:
                case Reserve():
                    self.asked.append(len(command.items))
                    self.items.update((item.dimension, item) for item in command.items)
                    if self.answers:
                        told += self.tell(self.answer(command))
                case Adjust():
                    self.book.adjust(command.request, command.items, self.now_ns)
                case _:
                    told.append(command)
        self.book.check()
        return told

    def answer(self, command: Reserve) -> Reserved | OverLimit:
        return self.book.reserve(command.request, command.items, self.now_ns)

    def arrive(self, request: int, *given: Any, **more: Any) -> list[Any]:
        event = Arrived(request, more.pop("tenant", "acme"), "free", *(given or (100, 50)), **{"key": "k1", **more})
        return [command for command in self.tell(event) if not isinstance(command, WakeAt)]

    @property
    def now_ns(self) -> int:
        return 10**18 + round(self.now * NS_PER_S)

    def used(self) -> dict[str, int]:
        return {dimension: self.book.used(item, self.now_ns) for dimension, item in self.items.items()}


def kinds(commands: list[Any]) -> list[str]:
    return [type(command).__name__ for command in commands]


def test_without_a_limit_that_applies_nothing_is_asked_of_the_store() -> None:
    gate = Gate({**REQUESTS, "when": {"tier": "gold"}})
    assert released(gate.arrive(1)) == [1]
    assert gate.asked == []


def test_every_dimension_is_taken_at_once_and_what_is_left_is_told_with_the_release() -> None:
    gate = Gate(*ALL)
    (release,) = gate.arrive(1, num_choices=2)
    assert isinstance(release, Release)
    assert {state.dimension: state.remaining for state in release.limits} == {
        "requests": 59,
        "prompt_tokens": 900,
        "output_tokens": 900,
        "total_tokens": 1800,
        "concurrency": 2,
        "queued": 1,
    }
    assert gate.asked == [6]
    assert gate.used() == {
        **NOTHING,
        "requests": 1,
        "prompt_tokens": 100,
        "output_tokens": 100,
        "total_tokens": 200,
    } | {"concurrency": 1}


def kept(prompt: int, output: int, num_requests: int = 1) -> dict[str, int]:
    return NOTHING | {
        "requests": num_requests,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "total_tokens": prompt + output,
    }


ENDS: list[tuple[str, int, str, dict[str, int]]] = [
    ("finished: the unused part goes back", 20, "finished", kept(100, 20)),
    ("cancelled in flight: what was not delivered goes back", 5, "cancelled", kept(100, 5)),
    ("cancelled before its first token: the prompt stays", 0, "cancelled", kept(100, 0)),
    ("an error before the first token: all goes back and it does not count", 0, "error", kept(0, 0, 0)),
    ("an error later: as a cancel", 7, "error", kept(100, 7)),
    ("refused by the scheduler", 0, "refused", kept(0, 0, 0)),
]


@pytest.mark.parametrize(("what", "output", "outcome", "used"), ENDS)
def test_at_its_end_a_request_keeps_what_it_really_took(
    what: str, output: int, outcome: str, used: dict[str, int]
) -> None:
    gate = Gate(*ALL)
    gate.arrive(1)
    gate.finish(1, output, outcome)
    assert gate.used() == used, what
    gate.finish(1, output, outcome)
    assert gate.used() == used, "an end that comes twice gave back twice"


def test_a_lease_that_expires_keeps_what_was_delivered_and_refunds_the_rest() -> None:
    gate = Gate(*ALL)
    gate.arrive(1)
    gate.tell(TokensProduced([1]))
    gate.tell(SchedulerLost())
    assert gate.used() == kept(100, 1)


def test_a_cancel_in_the_queue_refunds_all_tokens_and_still_counts_as_a_request() -> None:
    gate = Gate(*ALL, window=150)
    gate.arrive(1)
    assert kinds(gate.arrive(2)) == ["Queue"]
    assert gate.used() == kept(200, 100, 2) | {"concurrency": 2, "queued": 1}
    gate.tell(CancelRequested(2))
    gate.finish(1, 50)
    assert gate.used() == kept(100, 50, 2)


def test_a_request_whose_time_in_the_queue_is_up_gets_everything_back() -> None:
    gate = Gate(*ALL, window=150, queue={"ttl_s": 5})
    gate.arrive(1)
    gate.arrive(2)
    (refusal, *_) = gate.tell(Woke(), now=5.0)
    assert isinstance(refusal, Refuse)
    assert (refusal.request, refusal.code, refusal.tenant) == (2, "queue_timeout", "acme")
    gate.finish(1, 50)
    gate.now = 0.0
    assert gate.used()["concurrency"] == gate.used()["queued"] == 0
    # Five seconds bring back 5 requests and more tokens than either has left: ask at the time of the end.
    assert gate.book.used(gate.items["total_tokens"], gate.now_ns) == 0


def test_nothing_of_the_queue_is_held_once_a_request_is_released() -> None:
    gate = Gate(QUEUED, window=150)
    for request in (1, 2, 3):
        gate.arrive(request)
    assert gate.used() == {"queued": 2}
    assert kinds(gate.arrive(4)) == ["Refuse"]
    gate.finish(1, 50)
    assert gate.used() == {"queued": 1}


def test_a_refusal_names_dimension_subject_limit_use_request_and_wait() -> None:
    gate = Gate({**OUTPUT, "burst": 100}, PROMPT)
    gate.arrive(1, 10, 100)
    (refusal,) = gate.arrive(2, 10, 50)
    assert isinstance(refusal, Refuse)
    assert (refusal.code, refusal.dimension, refusal.retry_after_s) == ("rate_limit_exceeded", "output_tokens", 3.0)
    assert refusal.message == (
        'Tenant "acme" may use 1000 output tokens a minute, 100 at once: Limit 1000, Used 100, Requested 50;'
        " retry in 3 s."
    )
    assert [state.remaining for state in refusal.limits] == [0, 990]
    gate.now = 2.999999999
    assert kinds(gate.arrive(3, 10, 50)) == ["Refuse"]
    gate.now = 3.0
    assert kinds(gate.arrive(4, 10, 50)) == ["Release"]


def test_a_refusal_by_a_count_says_when_somebody_may_have_ended() -> None:
    gate = Gate({**OPEN, "max": 1, "when": {"class": "free"}})
    gate.arrive(1)
    (refusal,) = gate.arrive(2)
    assert (refusal.code, refusal.dimension) == ("rate_limit_exceeded", "concurrency")
    assert 1.0 <= refusal.retry_after_s <= 1.2
    assert refusal.message.startswith(
        'Tenant "acme", with class "free", may have 1 unfinished requests at once: Limit 1, Used 1,'
        " Requested 1; retry when one of them has ended, perhaps in 1."
    )
    gate.finish(1, 50)
    assert kinds(gate.arrive(3)) == ["Release"]


def test_more_than_a_limit_ever_allows_is_a_mistake_of_the_client_and_counts_as_a_request() -> None:
    gate = Gate(REQUESTS, {**TOTAL, "burst": 120})
    (refusal,) = gate.arrive(1)
    assert (refusal.code, refusal.dimension, refusal.retry_after_s) == ("request_exceeds_limit", "total_tokens", None)
    assert refusal.message == (
        'Tenant "acme" can never take more than 120 tokens at once: Limit 2000, Used 0, Requested 150. '
        "Shorten the prompt or lower max_tokens."
    )
    assert gate.used() == {"requests": 1, "total_tokens": 0}


def test_a_prompt_too_long_for_the_model_counts_as_a_request_too() -> None:
    gate = Gate(REQUESTS, TOTAL)
    (refusal,) = gate.arrive(1, 1990, 20)
    assert (refusal.code, refusal.limits[0].remaining) == ("context_length_exceeded", 59)
    assert gate.used() == {"requests": 1}


def test_a_mistake_over_its_limit_is_refused_for_that() -> None:
    gate = Gate({**REQUESTS, "burst": 1}, TOTAL)
    gate.arrive(1)
    (refusal,) = gate.arrive(2, 1990, 20)
    assert (refusal.code, refusal.dimension, refusal.retry_after_s) == ("rate_limit_exceeded", "requests", 1.0)


def test_an_invalid_request_is_counted_and_its_gateway_told_what_is_left() -> None:
    gate = Gate({**REQUESTS, "burst": 2}, TOTAL, OPEN, {**REQUESTS, "scope": "model"})
    (counted,) = [one for one in gate.tell(Invalid(1, "acme", key="k1")) if not isinstance(one, WakeAt)]
    assert isinstance(counted, Counted)
    assert [(state.scope, state.remaining) for state in counted.limits] == [("key", 1)]
    gate.tell(Invalid(2, "acme", key="k1"))
    (refusal,) = [one for one in gate.tell(Invalid(3, "acme", key="k1")) if not isinstance(one, WakeAt)]
    assert isinstance(refusal, Refuse)
    assert (refusal.code, refusal.tenant) == ("rate_limit_exceeded", "acme")


def test_an_invalid_request_is_counted_at_once_where_no_limit_applies() -> None:
    assert Gate().tell(Invalid(1, "acme")) == [Counted(1, tenant="acme")]
    assert Gate({**REQUESTS, "when": {"tier": "gold"}}).tell(Invalid(1, "acme", tier="free")) == [
        Counted(1, tenant="acme")
    ]


def test_a_stream_that_passes_what_was_expected_of_it_runs_into_debt_in_steps_and_is_not_cut() -> None:
    gate = Gate({**OUTPUT, "burst": 1100}, window=10_000)
    # Nothing is known of outputs yet: a choice that declares none is expected to have 1024 tokens.
    (release,) = gate.arrive(8, 10, 1900, declared=False)
    assert isinstance(release, Release)
    assert gate.used() == {"output_tokens": 1024}
    for _ in range(1024):
        gate.tell(TokensProduced([8]))
    assert gate.used() == {"output_tokens": 1024}
    gate.tell(TokensProduced([8]))
    assert gate.used() == {"output_tokens": 1024 + 64}
    for _ in range(63):
        gate.tell(TokensProduced([8]))
    assert gate.used() == {"output_tokens": 1024 + 64}
    gate.tell(TokensProduced([8]))
    assert gate.used() == {"output_tokens": 1024 + 2 * 64}
    (refusal,) = gate.arrive(9, 10, 1)
    assert (refusal.code, refusal.limits[0].remaining) == ("rate_limit_exceeded", 0)
    gate.finish(8, 1090)
    assert gate.used() == {"output_tokens": 1090}


def test_a_limit_for_when_requests_wait_holds_only_then() -> None:
    gate = Gate({**REQUESTS, "burst": 1, "mode": "only_when_saturated"}, window=150)
    assert [kinds(gate.arrive(request)) for request in (1, 2)] == [["Release"], ["Queue"]]
    assert [kinds(gate.arrive(request)) for request in (3, 4)] == [["Queue"], ["Refuse"]]
    assert gate.used() == {"requests": 1}


def test_a_limit_that_is_lowered_holds_for_new_requests_and_settles_the_old_as_they_took() -> None:
    gate = Gate(OUTPUT)
    gate.arrive(1, 10, 500)
    gate.tell(PolicyApplied(2, document(**{**gate.sections, "limits": [{**OUTPUT, "rate_per_min": 300}]})))
    (refusal,) = gate.arrive(2, 10, 300)
    assert (refusal.code, refusal.limits[0].limit) == ("rate_limit_exceeded", 300)
    gate.finish(1, 100)
    assert gate.book.used(gate.items["output_tokens"], gate.now_ns) == 100


def test_a_cancel_before_the_store_has_answered_withdraws_at_once_and_gives_back_then() -> None:
    gate = Gate(*ALL)
    gate.answers = False
    assert gate.arrive(1) == []
    items = gate.core.intake.pending[1].items
    assert gate.tell(CancelRequested(1)) == [Withdraw(1, "client_gone")]
    assert gate.tell(CancelRequested(1)) == []
    gate.tell(gate.book.reserve(1, items, gate.now_ns))
    assert gate.used() == kept(0, 0)
    assert gate.core.intake.taken == {}


def test_a_store_that_refuses_a_cancelled_request_is_not_passed_on() -> None:
    gate = Gate(REQUESTS)
    gate.answers = False
    gate.arrive(1)
    gate.tell(CancelRequested(1))
    assert gate.tell(OverLimit(1, gate.items["requests"], 1.0)) == []
    assert gate.tell(Reserved(77)) == []
    assert gate.tell(OverLimit(78, gate.items["requests"], 1.0)) == []


def test_nobody_waits_longer_for_a_store_than_for_a_place() -> None:
    gate = Gate(REQUESTS, queue={"ttl_s": 5})
    gate.answers = False
    assert gate.tell(Arrived(1, "acme", "free", 10, 10))[0:] == [WakeAt(5.0)]
    (refusal,) = gate.tell(Woke(), now=5.0)
    assert isinstance(refusal, Refuse)
    assert (refusal.code, refusal.retry_after_s) == ("queue_timeout", 1.0)
    assert "limits of the request could not be checked within 5 s" in refusal.message
    gate.tell(gate.book.reserve(1, (gate.items["requests"],), gate.now_ns))
    assert gate.used() == {"requests": 0}


def test_a_request_that_no_longer_fits_when_the_store_answers_gives_all_back() -> None:
    gate = Gate(*ALL, window=150, queue={"per_tenant_max": 1})
    gate.arrive(1)
    gate.answers = False
    gate.arrive(2)
    gate.arrive(3)
    second, third = (gate.core.intake.pending[request].items for request in (2, 3))
    assert kinds(gate.tell(gate.book.reserve(2, second, gate.now_ns))) == ["Queue"]
    refusals = gate.tell(gate.book.reserve(3, third, gate.now_ns))
    assert [(one.code, one.position) for one in refusals if isinstance(one, Refuse)] == [("queue_full", 1)]
    assert gate.used() == kept(200, 100, 2) | {"concurrency": 2, "queued": 1}


def test_whoever_waits_hears_how_many_go_before_it_and_how_long_that_may_take() -> None:
    gate = Gate(window=150)
    gate.arrive(1)
    positions = [
        next(command for command in gate.arrive(request, tenant=tenant) if isinstance(command, Queue)).position
        for request, tenant in ((2, "acme"), (3, "acme"), (4, "acme"), (5, "other"), (6, "other"))
    ]
    # By counters the tenants take turns: the first of `other` has one of `acme` before it, its second has three.
    assert positions == [0, 1, 2, 1, 3]
    by_arrival = Gate(window=150, fairness={"kind": "fcfs"})
    by_arrival.arrive(1)
    told = [by_arrival.arrive(request, tenant=tenant)[0] for request, tenant in ((2, "acme"), (3, "b"), (4, "b"))]
    assert [queue.position for queue in told if isinstance(queue, Queue)] == [0, 1, 2]


def test_the_expected_wait_follows_the_speed_and_never_passes_the_theorem_or_the_queue() -> None:
    gate = Gate(window=150, queue={"ttl_s": 10})
    gate.arrive(1)
    for _ in range(20):
        gate.tell(TokensProduced([1]), now=gate.now + 0.1)
    first = gate.arrive(2)[0]
    assert isinstance(first, Queue)
    # Its own 200 cost units must be served before there is room for it.
    assert 1.0 <= first.expected_wait_s / (200 / gate.core.rate.per_s) <= 1.2
    for request in range(3, 12):
        last = gate.arrive(request)[0]
    assert isinstance(last, Queue)
    assert last.expected_wait_s == 10.0
    stranger = gate.arrive(20, 1, 1, tenant="stranger")[0]
    assert isinstance(stranger, Queue)
    assert stranger.expected_wait_s <= 2 * gate.core.bound / gate.core.rate.per_s + 0.001


def test_a_request_that_came_while_no_executor_was_there_is_refunded_when_none_can_hold_it() -> None:
    gate = Gate(*ALL, kv_tokens=0)
    gate.arrive(1, 900, 50)
    commands = gate.tell(CapacityChanged(num_executors=1, kv_tokens=10_000, max_sequence_tokens=500))
    assert [one.code for one in commands if isinstance(one, Refuse)] == ["context_length_exceeded"]
    assert gate.used() == kept(0, 0)


def test_an_end_of_a_request_without_limits_gives_nothing_back() -> None:
    gate = Gate({**REQUESTS, "when": {"tier": "gold"}})
    gate.arrive(1)
    assert kinds(gate.tell(RequestFinished(1, 5, "finished"))) == ["Settle"]


def test_one_that_is_withdrawn_and_sent_again_before_the_store_answers_gets_that_answer() -> None:
    gate = Gate(*ALL)
    gate.answers = False
    for request in (1, 2):
        gate.arrive(request)
        assert kinds(gate.tell(CancelRequested(request, "gateway_lost"))) == ["Withdraw"]
        assert gate.arrive(request, resent=True) == []
    assert released(gate.tell(gate.book.reserve(1, gate.core.intake.pending[1].items, gate.now_ns))) == [1]
    assert kinds(gate.tell(OverLimit(2, gate.items["requests"], 1.0))) == ["Refuse"]
    assert gate.used() == kept(100, 50) | {"concurrency": 1}
