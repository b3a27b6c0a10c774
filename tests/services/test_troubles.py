"""What cannot be kept is said once, counted as long as it lasts, and taken back when it is over."""

import logging

import pytest

from services.telemetry import names
from services.troubles import ALL, STATE, TRAFFIC, Troubles, only_names


def values(troubles: Troubles) -> dict[str, float]:
    family = troubles.family()
    assert family.name == names.DEGRADED.name
    return {point.labels[0]: point.value for point in family.points}


def test_a_trouble_is_said_once_and_told_until_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    troubles = Troubles()
    assert values(troubles) == dict.fromkeys(ALL, 0.0)
    troubles.begin(STATE, "the disk is full")
    troubles.begin(STATE, "the disk is still full")
    troubles.begin(TRAFFIC, "nothing is recorded")
    assert troubles.sentences == ["state: the disk is still full", "traffic: nothing is recorded"]
    assert values(troubles) == {**dict.fromkeys(ALL, 0.0), STATE: 1.0, TRAFFIC: 1.0}
    troubles.over(STATE, "all is well")
    troubles.over(STATE, "all is well")
    assert troubles.sentences == ["traffic: nothing is recorded"]
    assert only_names(troubles.sentences) == ["traffic"]
    assert caplog.messages == ["the disk is full", "nothing is recorded", "all is well"]
