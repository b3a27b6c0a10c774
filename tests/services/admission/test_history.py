"""The history's pen on a disk that cannot be written: nothing of it is lost, and it says so meanwhile."""

from pathlib import Path

import pytest

from services.admission import history as history_module
from services.admission.history import History
from services.revisions import Revisions
from services.troubles import Troubles

POLICY = (Path(__file__).resolve().parents[3] / "policies" / "fcfs.yaml").read_bytes()


def test_what_could_not_be_written_is_written_when_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "RETRY_S", 0.001)
    blocked = tmp_path / "data"
    blocked.write_bytes(b"")  # where the folder should be
    troubles = Troubles()
    history = History(str(blocked), troubles)
    assert history.first(POLICY) == 1
    history.applied(2, POLICY + b"# 2\n")
    history.rejected(2, b"wrong", "wrong:1:1: it is")
    assert "remembered once that works again" in troubles.sentences[0]
    blocked.unlink()
    while troubles.sentences:
        pass
    history.close()
    written = Revisions(str(blocked))
    assert [each.revision for each in written.all()] == [1, 2]
    save = written.last_save()
    assert save is not None
    assert (save.revision, save.error) == (2, "wrong:1:1: it is")
