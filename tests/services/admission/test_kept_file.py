"""The SQLite file of admission: what is written is there for the next process, and what cannot be used is said."""

import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.admission.kept_file import FORMAT, KeptFile
from services.admission.store import Batch, StoreError
from services.runtime import StartError
from services.usage_rows import KEEP_DAYS, UsageError, UsageRow, day_of, first_day, read_usage

TODAY = day_of(time.time())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "admission.sqlite"


def opened(path: Path) -> KeptFile:
    file = KeptFile(path)
    file.open()
    return file


def reopened(path: Path):
    file = KeptFile(path)
    found = file.open()
    file.close()
    return found


def test_what_was_written_is_found_by_the_next_process(path: Path) -> None:
    file = opened(path)
    file.write(Batch({"a": b"1", "b": b"2"}, scheduler_epoch=7, ends_number=3), {"limit": b"x", "other": b"y"})
    file.write(Batch({"a": b"3", "b": None}, scheduler_epoch=7, ends_number=4), {"other": None})
    file.close()
    kept, levels = reopened(path)
    assert (kept.rows, kept.scheduler_epoch, kept.ends_number, levels) == ({"a": b"3"}, 7, 4, {"limit": b"x"})


def test_a_whole_batch_replaces_what_was_there_before(path: Path) -> None:
    file = opened(path)
    file.write(Batch({"a": b"1"}), {"limit": b"x"})
    file.write(Batch({"b": b"2"}, is_whole=True), {})
    file.close()
    kept, levels = reopened(path)
    assert (kept.rows, levels) == ({"b": b"2"}, {})


def test_usage_adds_up_and_can_be_read_while_the_writer_works(path: Path) -> None:
    file = opened(path)
    for _ in range(2):
        file.write(Batch({}, usage={(TODAY, "acme", "requests"): 1, (TODAY, "globex", "prompt_tokens"): 5}), {})
    assert read_usage(path, "", 1) == [
        UsageRow(TODAY, "acme", {"requests": 2}),
        UsageRow(TODAY, "globex", {"prompt_tokens": 10}),
    ]
    assert read_usage(path, "acme", 1) == [UsageRow(TODAY, "acme", {"requests": 2})]
    file.close()
    assert len(read_usage(path, "", 1)) == 2


def test_usage_is_read_of_the_days_asked_for_and_forgotten_after_more_than_a_year(path: Path) -> None:
    file = opened(path)
    days = [first_day(TODAY, num) for num in range(KEEP_DAYS + 1, 0, -1)]
    file.write(Batch({}, usage=dict.fromkeys(((day, "acme", "requests") for day in days), 1)), {})
    assert [row.day for row in read_usage(path, "", 2)] == days[-2:]
    assert [row.day for row in read_usage(path, "", 10 * KEEP_DAYS)] == days[1:]
    file.close()


def test_a_clock_that_is_years_ahead_for_a_day_costs_no_usage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = opened(path)
    days = [first_day(TODAY, num) for num in (2, 1)]
    file.write(Batch({}, usage=dict.fromkeys(((day, "acme", "requests") for day in days), 1)), {})
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: now_s + 3 * KEEP_DAYS * 86400)
    file.write(Batch({}, usage={(day_of(time.time()), "acme", "requests"): 1}), {})
    monkeypatch.undo()
    assert [row.day for row in read_usage(path, "", 2)][:2] == days
    file.close()


def test_no_file_is_no_usage_and_a_file_that_is_none_is_said(path: Path) -> None:
    assert read_usage(path, "", 1) == []
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(UsageError, match=r"admission.sqlite cannot be read: file is not a database"):
        read_usage(path, "", 1)


@pytest.mark.parametrize("damage", [lambda held: b"not a database" * 100, lambda held: held[:100] + b"\xff" * 8000])
def test_a_broken_file_is_put_aside_and_admission_begins_anew(path: Path, damage, caplog) -> None:
    file = opened(path)
    file.write(Batch({f"row {number}": b"1" * 100 for number in range(100)}), {})
    file.close()
    path.write_bytes(damage(path.read_bytes()))
    caplog.clear()
    file = KeptFile(path)
    kept, _ = file.open()
    assert kept.rows == {}
    assert "is broken" in caplog.text
    assert "equal counters and full limits" in caplog.text
    assert len(list(path.parent.glob("admission.sqlite.broken-*"))) == 1
    file.write(Batch({"a": b"1"}), {})
    file.close()
    assert reopened(path)[0].rows == {"a": b"1"}


def test_a_file_of_a_later_version_is_left_alone(path: Path) -> None:
    opened(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT + 1}")
    connection.close()
    with pytest.raises(StartError, match=r"later version.*start that version, or move the file away"):
        KeptFile(path).open()


def test_a_file_that_another_process_writes_is_not_shared(path: Path) -> None:
    code = "import sys, pathlib; from services.admission.kept_file import KeptFile\n"
    code += "file = KeptFile(pathlib.Path(sys.argv[1])); file.open(); print(flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        process.stdout.readline()
        with pytest.raises(StartError, match="another admission process"):
            KeptFile(path).open()
        process.kill()
    opened(path).close()


def test_a_file_that_cannot_be_opened_is_tried_again_at_every_write(path: Path, caplog) -> None:
    path.mkdir()
    file = KeptFile(path)
    kept, _ = file.open()
    assert kept.rows == {}
    assert "cannot be opened" in caplog.text
    with pytest.raises(StoreError, match="cannot be written"):
        file.write(Batch({"a": b"1"}), {})
    path.rmdir()
    file.write(Batch({"a": b"1"}, is_whole=True), {})
    file.close()
    assert reopened(path)[0].rows == {"a": b"1"}


def test_a_full_disk_keeps_nothing_of_a_batch_and_the_file_goes_on_when_there_is_room(path: Path) -> None:
    file = opened(path)
    file.write(Batch({"a": b"1"}), {})
    assert file._connection is not None
    (pages,) = file._connection.execute("PRAGMA page_count").fetchone()
    file._connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(StoreError, match="database or disk is full"):
        file.write(Batch({"a": b"2", "b": b"x" * 100_000}), {})
    file.write(Batch({"c": b"3"}), {})
    file.close()
    assert reopened(path)[0].rows == {"a": b"1", "c": b"3"}


def test_nobody_else_may_read_the_file(path: Path) -> None:
    opened(path).close()
    assert path.stat().st_mode & 0o077 == 0
