"""The section `admission`: what loads, what does not and why, and how it reads in words."""

import pytest

from policies.document.compile import compile_admission
from policies.document.diff import changes
from policies.document.explain import explain
from policies.document.loading import load_policy
from policies.document.problems import PolicyError

REST = """version: 1
name: test
classes: [{name: all, ttft_s: 1, tbt_s: 0.1}]
"""
ARRIVAL = "batching: {stages: [{decode: {}}, {prefill: {from: waiting}}]}\n"
SHORTEST = (
    "batching: {stages: [{decode: {}}, {prefill: {from: [started, waiting], order: [remaining_prompt_tokens]}}]}\n"
)


def text(more: str, batching: str = ARRIVAL) -> bytes:
    return (REST + batching + more).encode()


def test_nobody_is_refused_for_being_late_unless_a_policy_says_so() -> None:
    assert not compile_admission(load_policy(text(""))).refuse_when_late
    assert compile_admission(load_policy(text("admission: {refuse_when_late: true}"))).refuse_when_late


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("admission: {refuse_when_late: yes please}", "admission.refuse_when_late: the text"),
        ("admission: {refuse_late: true}", 'unknown key "refuse_late"'),
        ("admission: true", "5:12: admission:"),
    ],
)
def test_what_does_not_fit_is_said_with_its_line_and_what_does(section: str, said: str) -> None:
    with pytest.raises(PolicyError) as raised:
        load_policy(text(section))
    assert said in "\n".join(str(one) for one in raised.value.problems)


def test_it_reads_in_words_and_so_does_its_change() -> None:
    off, on = load_policy(text("")), load_policy(text("admission: {refuse_when_late: true}"))
    said = "Whoever cannot have the first token as soon as its class promises is refused, on arrival or while it waits."
    assert said in explain(on)
    assert said not in explain(off)
    assert changes(off, on) == ["admission.refuse_when_late: False -> True"]


def test_a_policy_that_starts_short_prompts_first_is_known_by_its_first_stage_for_them() -> None:
    assert not compile_admission(load_policy(text(""))).starts_shortest_first
    assert compile_admission(load_policy(text("", SHORTEST))).starts_shortest_first
