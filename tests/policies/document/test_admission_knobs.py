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
    assert compile_admission(load_policy(text(""))).late_after_s is None
    assert compile_admission(load_policy(text("admission: {refuse_when_late: true}"))).late_after_s == 0.0


def test_how_long_a_load_must_have_lasted_is_said_or_ten_seconds() -> None:
    for mapping, after_s in (("{}", 10.0), ("{after_s: 2.5}", 2.5), ("{after_s: 0}", 0.0)):
        policy = load_policy(text(f"admission: {{refuse_when_late: {mapping}}}"))
        assert compile_admission(policy).late_after_s == after_s


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("admission: {refuse_when_late: yes please}", "admission.refuse_when_late: the text"),
        ("admission: {refuse_when_late: {after_s: -1}}", "admission.refuse_when_late.after_s: -1"),
        ("admission: {refuse_when_late: {after: 1}}", 'did you mean "after_s"?'),
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
    lasting = load_policy(text("admission: {refuse_when_late: {after_s: 10}}"))
    assert f"Once more than three of four requests have been late for 10 s, w{said[1:]}" in explain(lasting)
    assert changes(on, lasting) == ["admission.refuse_when_late: True -> {'after_s': 10.0}"]
    assert changes(off, on) == ["admission.refuse_when_late: False -> True"]


def test_a_policy_that_starts_short_prompts_first_is_known_by_its_first_stage_for_them() -> None:
    assert not compile_admission(load_policy(text(""))).starts_shortest_first
    assert compile_admission(load_policy(text("", SHORTEST))).starts_shortest_first
