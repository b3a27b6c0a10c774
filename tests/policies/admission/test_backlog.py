"""What waits, by class, without a change to the core."""

import pytest

from policies.admission.backlog import queued_by_class
from policies.admission.core import AdmissionCore
from policies.events import Arrived, PolicyApplied, Started

POLICY = b"""
version: 1
name: two
classes: [{name: paid, ttft_s: 1, tbt_s: 1}, {name: free, ttft_s: 5, tbt_s: 1}]
classify: [{when: {tier: paid}, class: paid}, {class: free}]
batching: {stages: [{decode: {}}, {prefill: {from: waiting}}]}
"""


def test_what_waits_is_counted_by_the_class_it_would_be_released_under() -> None:
    core = AdmissionCore()
    core.handle(Started(0.0), 0.0)
    core.handle(PolicyApplied(1, POLICY), 0.0)
    assert queued_by_class(core) == {"paid": 0, "free": 0}
    # Without executors nothing is released.
    for request, (tier, allowed) in enumerate((("paid", ()), ("free", ()), ("free", ()), ("paid", ("free",)))):
        core.handle(Arrived(request, "acme", tier, 10, 10, allowed_classes=allowed), 0.0)
    assert queued_by_class(core) == {"paid": 1, "free": 3}
    core.check()


def test_a_core_without_a_policy_has_no_classes() -> None:
    with pytest.raises(RuntimeError, match="PolicyApplied"):
        queued_by_class(AdmissionCore())
