"""Cancels that overtake their requests."""

import pytest

from services.scheduler import early_cancels as early_cancels_module
from services.scheduler.early_cancels import EarlyCancels


def test_a_cancel_holds_for_its_request_and_once() -> None:
    early = EarlyCancels()
    early.came(1, "client_gone")
    early.came(1, "draining")
    assert [early.take(1), early.take(1), early.take(2)] == ["client_gone", None, None]


def test_only_the_newest_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_cancels_module, "MOST", 2)
    early = EarlyCancels()
    for request in (1, 2, 3):
        early.came(request, "client_gone")
    assert [early.take(request) for request in (1, 2, 3)] == [None, "client_gone", "client_gone"]
