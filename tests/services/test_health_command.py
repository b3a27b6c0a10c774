"""`fairlead health`: what a container's health check hears."""

import os
import time
from pathlib import Path

import pytest

from services.cli import main
from services.health import ready_file
from services.runtime import ReadyFile


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "deployment.yaml").write_text(f"data: {tmp_path}\nrun: {tmp_path}/run\n")
    monkeypatch.setenv("FAIRLEAD_DEPLOYMENT", str(tmp_path / "deployment.yaml"))
    return tmp_path / "run"


def test_a_service_is_healthy_while_it_is_ready_and_gives_signs_of_life(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ready = ReadyFile(run_folder, "scheduler")
    assert main(["health", "scheduler"]) == 1
    assert "scheduler is not ready" in capsys.readouterr().err
    ready.update("")
    assert main(["health", "scheduler"]) == 0
    long_ago = time.time() - 60
    os.utime(ready.path, (long_ago, long_ago))
    assert main(["health", "scheduler"]) == 1
    assert "scheduler was ready and has given no sign of life for 60 s" in capsys.readouterr().err


def test_a_process_that_leaves_takes_its_own_ready_file_and_not_its_successors(run_folder: Path) -> None:
    leaving = ReadyFile(run_folder, "gateway")
    leaving.update("")
    path = ready_file(str(run_folder), "gateway")
    path.write_text(f"{os.getppid()}\n")  # a process that lives and is not this one
    leaving.remove()
    assert path.exists()
    # Nobody is there any more who could remove it: the next one does.
    path.write_text(f"{2**22 + 1}\n")
    ReadyFile(run_folder, "gateway")
    assert not path.exists()


def test_a_run_folder_that_is_none_is_said_in_a_sentence(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder.write_text("")
    assert main(["health", "scheduler"]) == 1
    assert capsys.readouterr().err == f"fairlead: {run_folder}/scheduler.ready: cannot be looked at: Not a directory\n"
