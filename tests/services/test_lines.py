"""A log that cannot be written keeps nobody waiting, and says how much is missing."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from services import lines
from services.lines import Entries, Lines


def said(number: int) -> logging.LogRecord:
    return logging.LogRecord("test", logging.INFO, "", 0, "line %d", (number,), None)


def handler(descriptor: int) -> Lines:
    return Lines(descriptor, lambda num_lost: f"{num_lost} lost")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def test_lines_come_in_their_order_and_all_of_them_by_the_end(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    written = handler(writing)
    for number in range(3):
        written.emit(said(number))
    written.close()
    assert os.read(reading, 100) == b"line 0\nline 1\nline 2\n"


def test_what_a_stranger_says_looks_like_no_entry_and_moves_no_cursor(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    written = handler(writing)
    written.setFormatter(Entries("%(levelname)s %(message)s", ""))
    said_by_stranger = "x\nCRITICAL all is lost\r\x1b[2Jy\x00\x85\u2028z\u202e\tend"
    written.emit(logging.LogRecord("test", logging.INFO, "", 0, "no stream: %s", (said_by_stranger,), None))
    written.close()
    entry = os.read(reading, 200).decode()
    assert entry == ("INFO no stream: x\n  CRITICAL all is lost\\r\\x1b[2Jy\\x00\\x85\\u2028z\\u202e\tend\n")


def test_a_pipe_that_nobody_empties_keeps_nobody_waiting(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MOST_WAITING", 100)
    monkeypatch.setattr(lines, "CLOSE_S", 0.0)
    reading, writing = pipe
    written = handler(writing)
    num_lines = 100_000
    for number in range(num_lines):
        written.emit(said(number))
    text = b""
    while b"lost" not in text:
        text += os.read(reading, 2**16)
        written.emit(said(num_lines))
    written.close()
    before, _, _ = text.decode().partition(" lost")
    *kept, num_lost = before.split("\n")
    numbers = [int(line.removeprefix("line ")) for line in kept]
    assert numbers == sorted(set(numbers))
    assert int(num_lost) > 0
    assert numbers[:100] == list(range(100))


def test_a_full_disk_costs_the_lines_and_then_says_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "RETRY_S", 0.0)
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    full = os.open("/dev/full", os.O_WRONLY)
    written = handler(full)
    for number in range(5):
        written.emit(said(number))
    while written.num_lost < 5:
        pass
    os.dup2(log, full)
    written.emit(said(5))
    written.close()
    assert (tmp_path / "log").read_text() == "5 lost\nline 5\n"
    os.close(log)
    os.close(full)
