import msgspec

from policies.document.diff import changes
from policies.document.loading import load_policy
from policies.document.schema import Policy

BASE = """version: 1
name: one
classes:
  - {name: paid, ttft_s: 0.5, tbt_s: 0.1}
  - {name: free, ttft_s: 5, tbt_s: 0.5}
batching:
  stages:
    - decode: {}
    - prefill: {from: [started, waiting]}
"""


def policy(*edits: tuple[str, str], more: str = "") -> Policy:
    text = BASE
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    return load_policy((text + more).encode())


def test_equal_policies_have_no_changes() -> None:
    assert changes(policy(), policy()) == []


def test_a_changed_knob_is_named_with_both_values() -> None:
    new = policy(("name: one", "name: two"), more="kv: {watermark: 0.5}\npreemption: {victim: [self]}\n")
    assert changes(policy(), new) == [
        "name: one -> two",
        "kv.watermark: 0.01 -> 0.5",
        "preemption.victim: [newest, self] -> [self]",
    ]


def test_a_knob_that_changes_its_kind_shows_both() -> None:
    new = policy(more="deadlines: {step_time: {ewma: 0.1}}\ndescription: better\n")
    assert changes(policy(), new) == ["description: nothing -> better", "deadlines.step_time: mean -> {'ewma': 0.1}"]


def test_classes_are_compared_by_name() -> None:
    new = policy(("paid, ttft_s: 0.5", "paid, ttft_s: 1"), ("name: free", "name: batch"))
    assert changes(policy(), new) == [
        "classes[free]: removed; its running requests keep its values",
        "classes[paid].ttft_s: 0.5 -> 1.0",
        "classes[batch]: added (ttft_s 5, tbt_s 0.5)",
    ]


def test_a_new_order_of_classes_is_a_new_priority() -> None:
    old = policy()
    new = msgspec.structs.replace(old, classes=old.classes[::-1])
    assert changes(old, new) == ["classes: priority is now free, paid"]


def test_stages_and_rules_are_told_as_sentences() -> None:
    new = policy(("decode: {}", "decode: {order: [class_priority]}"), more="classify: [{class: paid}]\n")
    stages, rules = changes(policy(), new)
    assert stages == (
        "batching.stages: 1. All decodes not yet in the step, one token each; the most important class first. "
        "2. Started prompts, then waiting ones, cut to what is left of the budget; the earliest arrival first."
    )
    assert rules == "classify: everything else: paid."
    assert changes(new, policy())[-1] == "classify: everything gets the last class"
