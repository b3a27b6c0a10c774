"""Processes as their supervisor sees them, where the machine does not give what they need."""

from pathlib import Path

import pytest

from services import children
from services.children import LAST_WORDS_BYTES, Child


def child(folder: Path, monkeypatch: pytest.MonkeyPatch, executable: str = "/bin/true") -> Child:
    monkeypatch.setattr(children.sys, "executable", executable)
    log, deployment = folder / "logs" / "x.log", folder / "deployment.json"
    return Child("x", ["x"], log=log, deployment=deployment, descriptors=[])


def ended(process: Child) -> Child:
    process.bury()
    return process


def test_one_that_cannot_be_started_leaves_no_descriptor_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def num_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = num_open()
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            child(tmp_path, monkeypatch, "/nowhere/python")
    assert num_open() == before


def test_a_log_that_was_removed_is_said_and_ends_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = ended(child(tmp_path, monkeypatch))
    process.log.unlink()
    assert process.last_words.startswith("its log cannot be read: No such file or directory (status 0, log ")


def test_of_a_log_of_any_size_only_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = ended(child(tmp_path, monkeypatch))
    process.log.write_text("long ago\n" * LAST_WORDS_BYTES + "why it ended\n")
    assert process.last_words.startswith("why it ended (status 0, log ")
    process.log.write_text("x" * 3 * LAST_WORDS_BYTES)
    assert len(process.last_words) < 2 * LAST_WORDS_BYTES
