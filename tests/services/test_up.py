import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from services import up
from services.settings import Deployment
from services.setup import SetupError, prepare


@pytest.fixture
def left_behind(tmp_path: Path) -> Iterator[int]:
    """What a service holds whose supervisor was killed."""
    descriptor = os.open(tmp_path / "services.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield descriptor
    os.close(descriptor)


def test_services_whose_supervisor_was_killed_are_waited_for(
    tmp_path: Path, left_behind: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[float] = []

    def sleep(duration_s: float) -> None:
        waits.append(duration_s)
        if len(waits) == 3:
            fcntl.flock(left_behind, fcntl.LOCK_UN)

    monkeypatch.setattr(up.time, "sleep", sleep)
    with up._alone(tmp_path, limit_s=40.0):
        assert len(waits) == 3
    (said,) = capsys.readouterr().err.splitlines()
    assert "still finish their requests" in said
    assert "40 s at most" in said


@pytest.mark.usefixtures("left_behind")
def test_services_that_never_end_are_named_and_nobody_starts_beside_them(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="still run on data folder"), up._alone(tmp_path, limit_s=0.0):
        raise AssertionError("two at once")


def test_a_folder_of_everybodys_is_not_made_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = tmp_path / "tmp"
    common.mkdir()
    common.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(common))
    with pytest.raises(SetupError, match="this folder is for everybody's files"):
        prepare(Deployment(data=str(common), policy="policies/fairlead.yaml").resolved())
    assert common.stat().st_mode & 0o7777 == 0o1777


def test_a_file_system_of_ones_own_is_taken_whoever_may_write_to_it_before(tmp_path: Path) -> None:
    mounted = tmp_path / "data"
    mounted.mkdir()
    mounted.chmod(0o1777)  # as tmpfs is mounted
    prepare(Deployment(data=str(mounted), policy="policies/fairlead.yaml").resolved())
    assert mounted.stat().st_mode & 0o777 == 0o700
