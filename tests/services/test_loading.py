"""From an executor that loads to a bar on the terminal of whoever waits."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from services import loading
from services.loading import MIB, LoadingBar, LoadingFile, loading_file


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    seen: list[object] = []

    @contextmanager
    def bar(title: str) -> Iterator[object]:
        seen.append(title)
        yield lambda done, total: seen.append((done, total))
        seen.append("gone")

    monkeypatch.setattr(loading, "progress_bar", bar)
    return seen


def test_a_bar_is_there_while_a_model_is_loaded_and_goes_with_the_file(tmp_path: Path, shown: list[object]) -> None:
    path = loading_file(str(tmp_path))
    file, bar = LoadingFile(path), LoadingBar(path)
    assert not bar.look()
    file.tell(3 * MIB, 8 * MIB)
    assert bar.look()
    path.write_text("")  # it is being written
    assert bar.look()
    file.remove()
    assert not bar.look()
    assert shown == ["loading the model, MiB", (3, 8), "gone"]


def test_what_is_told_at_once_is_written_once_and_what_cannot_be_written_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading.time, "monotonic", lambda: 100.0)
    file = LoadingFile(tmp_path / "executor.loading")
    for done in (1, 2, 3):
        file.tell(done, 3)
    assert (tmp_path / "executor.loading").read_text() == "1 3\n"
    nowhere = LoadingFile(tmp_path / "none" / "executor.loading")
    nowhere.tell(1, 3)
    nowhere.remove()
