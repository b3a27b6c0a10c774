"""What a request is charged at release and takes of the window: predictors, reserves and undeclared outputs."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.admission.core import AdmissionCore
from policies.admission.nodes import Queued
from policies.admission.predictors import Declared, MeanLast, MovingAverage, Nothing, Oracle, predictor
from policies.commands import Command, Release
from policies.document.fairness import LengthPredictor
from policies.events import (
    Arrived,
    CancelRequested,
    CapacityChanged,
    PolicyApplied,
    RequestFinished,
    Started,
    TokensProduced,
)
from tests.policies.admission.worlds import Conditions, World, document, random_trace

histories = st.integers(min_value=0, max_value=2**32)
GUESSES: list[Any] = ["declared", "oracle", {"mean_last": 5}, {"ema": 0.2}, {"noisy_oracle": 0.5}]


class Desk:
    """An admission core with a short way to say what happens to it; checked after every event."""

    def __init__(self, **fairness: Any) -> None:
        self.core = AdmissionCore()
        self.tell(Started(0.0))
        self.tell(PolicyApplied(1, document(**{"kind": "vtc", "window_tokens": 1000, **fairness})))
        self.tell(CapacityChanged(1, 10_000, 5_000))

    def tell(self, event: Any) -> list[Command]:
        commands = self.core.handle(event, 0.0)
        self.core.check()
        return commands

    def arrive(self, request: int, prompt: int = 10, output: int = 100, **more: Any) -> list[int]:
        commands = self.tell(Arrived(request, more.pop("tenant", "acme"), "free", prompt, output, **more))
        return [one.request for one in commands if isinstance(one, Release)]

    def step(self, *requests: int, times: int = 1) -> None:
        for _ in range(times):
            self.tell(TokensProduced(list(requests)))

    def finish(self, request: int, output: int, outcome: str = "finished") -> list[int]:
        commands = self.tell(RequestFinished(request, output, outcome))
        return [one.request for one in commands if isinstance(one, Release)]

    @property
    def owed(self) -> float:
        return self.core.queue.accounts["acme"].counter

    @property
    def reserved(self) -> int:
        return self.core.window.reserved_tokens


def queued(number: int = 1, tenant: str = "acme", num_choices: int = 1, true: int | None = None) -> Queued:
    return Queued(
        number,
        number,
        tenant=tenant,
        prompt_tokens=10,
        max_output_tokens=100,
        num_choices=num_choices,
        true_tokens=true,
    )


def test_each_predictor_says_what_its_name_promises() -> None:
    assert Nothing().output_tokens(queued()) == 0
    assert Declared().output_tokens(queued(num_choices=2)) == 200
    assert Oracle(0.0).output_tokens(queued(num_choices=2, true=30)) == 60
    mean = MeanLast(2)
    average = MovingAverage(0.2)
    assert mean.output_tokens(queued()) == average.output_tokens(queued()) == 0
    for output in (10, 20, 60):
        mean.ended("acme", 1, output)
        average.ended("acme", 1, output)
    mean.ended("other", 2, 8)
    assert mean.output_tokens(queued()) == 40
    assert mean.output_tokens(queued(tenant="other", num_choices=3)) == 12
    assert average.output_tokens(queued()) == round(0.8 * (0.8 * 10 + 0.2 * 20) + 0.2 * 60)


def test_a_noisy_oracle_is_within_its_share_and_the_same_in_every_replay() -> None:
    guesses = [Oracle(0.5).output_tokens(queued(number, true=100)) for number in range(500)]
    assert guesses == [Oracle(0.5).output_tokens(queued(number, true=100)) for number in range(500)]
    assert min(guesses) < 53
    assert max(guesses) > 147
    assert all(50 <= guess <= 150 for guess in guesses)
    assert sum(guesses) / 500 == pytest.approx(100, abs=4)


def test_tenants_beyond_what_is_remembered_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policies.admission.predictors.MAX_TENANTS", 2)
    for learning in (predictor(LengthPredictor(mean_last=3)), predictor(LengthPredictor(ema=0.5))):
        for tenant in ("a", "b", "a", "c"):
            learning.ended(tenant, 1, 50)
        assert [learning.output_tokens(queued(tenant=tenant)) for tenant in "abc"] == [50, 0, 50]


def test_a_prediction_is_charged_at_once_and_the_rest_when_it_comes() -> None:
    desk = Desk(predictor={"mean_last": 5})
    desk.arrive(1)
    desk.step(1, times=4)
    desk.finish(1, 4)
    assert desk.owed == 10 + 8
    desk.arrive(2)
    assert desk.owed == 18 + 10 + 8
    desk.step(2, times=4)
    assert desk.owed == 36
    desk.step(2, times=2)
    assert desk.owed == 36 + 4
    desk.finish(2, 6)
    desk.arrive(3)
    assert desk.owed == 40 + 10 + 10
    desk.step(3)
    desk.finish(3, 1)
    assert desk.owed == 40 + 10 + 2


def test_only_whole_outputs_are_learnt_from() -> None:
    desk = Desk(predictor={"ema": 1.0})
    for request, outcome in ((1, "finished"), (2, "cancelled"), (3, "error")):
        desk.arrive(request)
        desk.step(request, times=7)
        desk.finish(request, 7 if outcome == "finished" else 2, outcome)
    before = desk.owed
    desk.arrive(4)
    assert desk.owed == before + 10 + 2 * 7


def test_by_formula_what_is_predicted_and_comes_is_the_whole_cost() -> None:
    cost = {"kind": "quadratic", "a": 1, "b": 2, "c": 0.5, "d": 0.25, "e": 3}
    for guess in GUESSES:
        desk = Desk(predictor=guess, cost=cost)
        desk.arrive(1, output_tokens=9)
        desk.step(1, times=9)
        desk.finish(1, 9)
        assert desk.owed == pytest.approx(10 + 18 + 45 + 0.25 * 81 + 3)


def test_a_prefix_found_in_the_cache_is_given_back_once() -> None:
    desk = Desk(cost={"kind": "weighted_tokens", "prompt": 2, "output": 1, "cached_prompt": 0.5})
    desk.arrive(1)
    desk.arrive(2)
    desk.tell(TokensProduced([1], [(1, 8), (99, 5)]))
    assert desk.owed == 40 + 1 - 8
    desk.tell(TokensProduced([1], [(1, 8)]))
    assert desk.owed == 34
    desk.tell(TokensProduced([2], [(2, 1000)]))
    assert desk.owed == 35 - 10
    (settled,) = desk.tell(RequestFinished(1, 0, "error"))
    assert (desk.owed, settled) == (35 - 10 - 14, settled)
    assert desk.core.ledger.in_flight[2].cached_tokens == 10


def test_with_reserve_predicted_the_window_holds_the_prediction_and_grows_with_the_output() -> None:
    desk = Desk(reserve="predicted", predictor={"mean_last": 5}, window_tokens=40)
    desk.arrive(1)
    assert desk.reserved == 10
    desk.step(1, times=20)
    assert desk.reserved == 30
    desk.finish(1, 20)
    assert desk.arrive(2) == [2]
    assert desk.arrive(3) == []
    desk.step(2, times=25)
    assert (desk.reserved, desk.core.window.peak_tokens) == (35, 35)
    assert desk.finish(2, 25) == [3]


def test_a_prediction_above_what_was_declared_is_reserved_too() -> None:
    desk = Desk(predictor={"noisy_oracle": 0.99})
    for request in range(1, 6):
        desk.arrive(request, output=100)
    charged = [charge.predicted_tokens for charge in desk.core.ledger.in_flight.values()]
    assert max(charged) > 100
    assert desk.reserved == sum(10 + max(100, predicted) for predicted in charged)


def test_with_reserve_occupancy_the_peak_of_what_all_will_hold_must_be_below_the_window() -> None:
    desk = Desk(reserve="occupancy", window_tokens=100)
    assert desk.arrive(1, prompt=20, output_tokens=40) == [1]
    desk.step(1, times=30)
    # 1 holds 50 and will hold 9 more, the newcomer 11 and 28 more: the peak is max(28 + 11, 2 x 9 + 61) = 79.
    assert desk.arrive(2, prompt=10, output_tokens=30) == [2]
    # With 3, of 12 and 10 more, the peak is 3 x 9 + 11 + 12 + 50 = 100, which is not below.
    assert desk.arrive(3, prompt=11, output_tokens=12) == []
    assert desk.core.window.peak_tokens == 60 + 40
    # Then 1 holds 51 and will hold 8 more: 3 x 8 + 11 + 12 + 51 = 98.
    desk.step(1)
    assert 3 in desk.core.ledger.in_flight


def test_occupancy_lets_any_request_run_alone_and_keeps_to_the_count() -> None:
    desk = Desk(reserve="occupancy", window_tokens=100, max_requests=2)
    assert desk.arrive(1, prompt=20, output_tokens=100) == [1]
    assert desk.arrive(2, prompt=1, output_tokens=1) == []
    desk.finish(1, 1)
    assert desk.arrive(3, prompt=1, output_tokens=1) == [3]
    assert desk.arrive(4, prompt=1, output_tokens=1) == []


def test_releases_wait_for_the_steps_that_the_policy_wants_between_them() -> None:
    desk = Desk(admit_every_steps=3)
    assert desk.arrive(1) == [1]
    assert desk.arrive(2) == []
    seen = []
    for _ in range(5):
        desk.step(1)
        seen.append(2 in desk.core.ledger.in_flight)
    # The step of the prompt, which makes the first token, is no decode step.
    assert seen == [False, False, False, True, True]
    assert desk.finish(1, 5) == []
    assert desk.finish(2, 1) == []
    assert desk.arrive(3) == [3]


def test_an_undeclared_output_is_sized_by_what_others_came_to_and_never_cut() -> None:
    desk = Desk(window_tokens=20_000)
    desk.arrive(1, output=4000, declared=False)
    assert desk.reserved == 10 + 1024
    desk.step(1, times=1030)
    assert desk.reserved == 10 + 1030
    desk.finish(1, 1030)
    for request in range(2, 62):
        desk.arrive(request, output=4000, declared=False)
        desk.step(request, times=20)
        desk.finish(request, 20)
    desk.arrive(100, output=4000, declared=False, num_choices=2)
    assert 10 + 2 * 20 <= desk.reserved < 10 + 2 * 100
    desk.arrive(200, output=4000)
    assert desk.core.ledger.in_flight[200].place.size_tokens == 4010


def test_undeclared_requests_that_never_ran_teach_nothing() -> None:
    desk = Desk(window_tokens=10)
    desk.arrive(1, output=4000, declared=False)
    for request in range(2, 200):
        desk.arrive(request, output=4000, declared=False)
        desk.tell(CancelRequested(request))
    desk.finish(1, 700)
    desk.arrive(300, output=4000, declared=False)
    assert desk.reserved == 10 + 1024


@settings(max_examples=40, deadline=None)
@given(seed=histories, guess=st.sampled_from(GUESSES), reserve=st.sampled_from(["declared", "predicted", "occupancy"]))
def test_charges_come_to_the_cost_whatever_is_predicted_and_reserved(seed: int, guess: Any, reserve: str) -> None:
    policy = document(kind="vtc", window_tokens=60, predictor=guess, reserve=reserve)
    world = World(policy, random_trace(seed, num_asks=40, keys=2), Conditions(preempted=0.1, lost=0.05), seed=seed)
    # The ledger's own check compares charges to costs after every event.
    world.run()
    assert world.core.window.reserved_tokens == world.core.window.num_requests == 0
    assert len(world.ends) == len(world.lives)


@settings(max_examples=30, deadline=None)
@given(seed=histories, guess=st.sampled_from(GUESSES), reserve=st.sampled_from(["declared", "predicted"]))
def test_f9_counters_stay_within_the_bound_of_what_was_really_in_flight(seed: int, guess: Any, reserve: str) -> None:
    def watch(_event: Any, _commands: Any) -> None:
        assert world.core.gap_ratio <= 2.0

    policy = document(kind="vtc", window_tokens=60, predictor=guess, reserve=reserve)
    world = World(policy, random_trace(seed, calm=True), seed=seed)
    world.watchers.append(watch)
    world.run()
