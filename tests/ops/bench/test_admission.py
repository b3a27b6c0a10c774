"""The admission benchmark measures a backlog that stays as it is."""

import pytest

from ops.bench import admission


def test_a_decision_and_a_cycle_leave_as_many_waiting_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "BATCHES", 2)
    monkeypatch.setattr(admission, "CYCLES", 20)
    backlog = admission.Backlog(1_500)
    assert backlog.decide() > 0
    assert backlog.cycle() > 0
    backlog._core.check()
    assert len(backlog._core.queue.waiting) == 1_500


def test_the_reference_keeps_its_size_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "BATCHES", 2)
    heap = admission.Heap(500)
    assert heap.decide() > 0
    assert len(heap._heap) == 500
