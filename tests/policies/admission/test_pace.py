"""When releases may happen, where a policy ties them to steps."""

import pytest

from policies.admission.core import AdmissionCore
from policies.admission.pace import Pace
from policies.admission.window import Window
from policies.commands import Command, Release
from policies.document.explain import explain
from policies.document.loading import load_policy
from policies.document.problems import PolicyError
from policies.events import (
    Arrived,
    CapacityChanged,
    PolicyApplied,
    PrefixesFound,
    RequestFinished,
    Started,
    TokensProduced,
)

POLICY = b"""
version: 1
name: paced
classes: [{name: all, ttft_s: 1, tbt_s: 1}]
fairness: {kind: vtc, window_tokens: 1000, admit_every_steps: 2, admit_prompt_tokens: 30}
batching: {stages: [{decode: {}}, {prefill: {from: waiting}}]}
"""


def busy() -> Window:
    window = Window()
    window.take(1)
    return window


def released(commands: list[Command]) -> list[int]:
    return [command.request for command in commands if isinstance(command, Release)]


def test_without_a_rhythm_nothing_is_held_back() -> None:
    pace = Pace()
    pace.released(10**6)
    assert not pace.holds_back(busy())
    assert pace.has_room(10**6, busy())


def test_the_step_of_the_prompts_does_not_count_and_an_idle_device_is_not_kept_waiting() -> None:
    pace = Pace(every_steps=2)
    pace.released(10)
    assert not pace.holds_back(Window())
    for closed in (True, True, False):
        pace.step_ended()
        assert pace.holds_back(busy()) is closed


def test_a_portion_holds_one_prompt_at_least() -> None:
    pace = Pace(every_steps=2, most_prompt_tokens=30)
    assert pace.has_room(50, busy())
    pace.released(20)
    assert (pace.has_room(10, busy()), pace.has_room(11, busy()), pace.has_room(11, Window())) == (True, False, True)
    pace.step_ended()
    assert pace.has_room(50, busy())


def test_admission_releases_in_portions_with_steps_in_between() -> None:
    core = AdmissionCore()
    for event in (Started(0.0), PolicyApplied(1, POLICY), CapacityChanged(1, 1000, 1000)):
        core.handle(event, 0.0)
    assert released(core.handle(Arrived(1, "a", "free", 20, 10), 0.0)) == [1]
    for request, prompt_tokens in ((2, 20), (3, 10), (4, 5)):
        assert released(core.handle(Arrived(request, "a", "free", prompt_tokens, 10), 0.0)) == []
    steps = [released(core.handle(TokensProduced([1]), float(at))) for at in range(1, 4)]
    assert steps == [[], [], [2, 3]]
    core.check()
    for request in (1, 2, 3):
        last = core.handle(RequestFinished(request, 4), 4.0)
    assert released(last) == [4]


def test_portions_are_said_in_words_and_need_a_rhythm() -> None:
    words = explain(load_policy(POLICY))
    assert "After a release 2 decode steps pass before the next." in words
    assert "At a time, prompts of at most 30 tokens together are released." in words
    with pytest.raises(PolicyError, match=r"paced.yaml:5:.*fairness.admit_prompt_tokens: without admit_every_steps"):
        load_policy(POLICY.replace(b"admit_every_steps: 2, ", b""), "paced.yaml")


def test_what_is_heard_of_a_prefix_without_a_step_is_given_back_and_counts_as_none() -> None:
    core = AdmissionCore()
    for event in (Started(0.0), PolicyApplied(1, POLICY), CapacityChanged(1, 1000, 1000)):
        core.handle(event, 0.0)
    for request in (1, 2):
        core.handle(Arrived(request, "a", "free", 20, 10), 0.0)
    before = core.ledger.in_flight[1].charged
    for _ in range(3):
        assert released(core.handle(PrefixesFound([(1, 16)]), 1.0)) == []
    assert core.ledger.in_flight[1].charged < before
    core.check()
    steps = [released(core.handle(TokensProduced([1]), float(at))) for at in range(2, 5)]
    assert steps == [[], [], [2]]
