"""Files that operators write: what is read of them, and what no reader waits for."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from policies.document.tree import MAX_BYTES
from services.files import read_document


def test_a_document_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"version: 1\n")
    assert read_document(path) == b"version: 1\n"


def test_of_a_file_without_end_no_more_is_read_than_shows_that_it_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    with path.open("wb") as file:
        file.truncate(2**40)
    assert len(read_document(path)) == MAX_BYTES + 1


@pytest.fixture
def unreadable(tmp_path: Path) -> Iterator[dict[str, Path]]:
    paths = {name: tmp_path / name for name in ("fifo", "folder", "socket", "loop", "gone", "device")}
    os.mkfifo(paths["fifo"])
    paths["folder"].mkdir()
    paths["loop"].symlink_to(paths["loop"])
    paths["device"].symlink_to("/dev/zero")
    paths["beneath"] = tmp_path / "file" / "policy.yaml"
    (tmp_path / "file").write_bytes(b"")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(paths["socket"]))
        yield paths


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fifo", "it is a FIFO, not a regular file"),
        ("folder", "Is a directory|it is a folder"),
        ("socket", "No such device or address"),
        ("loop", "Too many levels of symbolic links"),
        ("gone", "No such file or directory"),
        ("device", "it is a device, not a regular file"),
        ("beneath", "Not a directory"),
    ],
)
def test_what_is_no_document_is_refused_at_once(unreadable: dict[str, Path], name: str, said: str) -> None:
    with pytest.raises(OSError, match=said):
        read_document(unreadable[name])
