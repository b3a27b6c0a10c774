"""Starts of a service under a wall clock that somebody sets."""

import time
from pathlib import Path

import pytest

from services.epochs import ROOM, first_epoch

HOUR_NS = 3600 * 10**9


@pytest.mark.parametrize("jump_ns", [-HOUR_NS, HOUR_NS, -24 * 365 * HOUR_NS])
def test_a_later_start_is_newer_whatever_the_clock_has_become(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_ns: int
) -> None:
    before = first_epoch(str(tmp_path), "executor", "0")
    now_ns = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now_ns + jump_ns)
    for _ in range(3):
        after = first_epoch(str(tmp_path), "executor", "0")
        assert after >= before + ROOM
        before = after
    assert first_epoch(str(tmp_path), "executor", "1") == now_ns + jump_ns


@pytest.mark.parametrize("content", [b"", b"soon", b"\xff"])
def test_a_damaged_number_is_none(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "epochs"
    folder.mkdir()
    (folder / "executor-0").write_bytes(content)
    assert first_epoch(str(tmp_path), "executor", "0") <= time.time_ns()


def test_a_folder_that_cannot_be_written_leaves_the_clock(tmp_path: Path) -> None:
    blocked = tmp_path / "data"
    blocked.write_bytes(b"")
    before = time.time_ns()
    assert first_epoch(str(blocked), "executor", "0") >= before
