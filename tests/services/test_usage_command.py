"""`fairlead usage`: what was counted, in words and as JSON."""

import json
import time
from pathlib import Path

import msgspec
import pytest

from services.admission.kept_file import KeptFile
from services.admission.store import Batch
from services.cli import main
from services.settings import STARTED, Deployment
from services.usage_rows import FILE, day_of, first_day

TODAY = day_of(time.time())
YESTERDAY = first_day(TODAY, 2)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = KeptFile(tmp_path / FILE)
    file.open()
    counts = {
        "requests": 3,
        "prompt_tokens": 12_000,
        "cached_tokens": 4000,
        "output_tokens": 600,
        "refused:queue_full": 2,
    }
    usage = {(TODAY, "acme", name): count for name, count in counts.items()}
    file.write(Batch({}, usage=usage | {(YESTERDAY, "globex", "requests"): 1}), {})
    file.close()
    return tmp_path


def test_usage_of_a_shared_store_is_asked_of_admission(tmp_path: Path, capsys, monkeypatch) -> None:
    shared = Deployment(data=str(tmp_path), run=str(tmp_path), store="redis://127.0.0.1/0").resolved()
    (tmp_path / STARTED).write_bytes(msgspec.json.encode(shared))
    (tmp_path / "streams.secret").write_text("s" * 32)
    monkeypatch.setattr("services.asking.CONNECT_S", 0.2)
    assert main(["usage", "--data-dir", str(tmp_path)]) == 2
    assert "fairlead usage: no admission at unix://" in capsys.readouterr().err


def test_usage_of_today_is_a_table(data: Path, capsys) -> None:
    assert main(["usage", "--data-dir", str(data)]) == 0
    head, row = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head == ["day", "tenant", "requests", "prompt", "cached", "output", "refused"]
    assert row == [TODAY, "acme", "3", "12,000", "4,000", "600", "2", "queue_full"]


def test_usage_of_one_tenant_over_some_days_is_json_when_asked(data: Path, capsys) -> None:
    assert main(["usage", "--data-dir", str(data), "--days", "2", "--tenant", "globex", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "usage": [
            {
                "day": YESTERDAY,
                "tenant": "globex",
                "prompt_tokens": 0,
                "cached_tokens": 0,
                "output_tokens": 0,
                "requests": 1,
                "refusals": {},
            }
        ]
    }


def test_no_usage_is_said(tmp_path: Path, capsys) -> None:
    assert main(["usage", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no usage today\n"


def test_usage_that_cannot_be_read_is_said(tmp_path: Path, capsys) -> None:
    (tmp_path / FILE).write_bytes(b"not a database" * 100)
    assert main(["usage", "--data-dir", str(tmp_path)]) == 2
    assert "admission.sqlite cannot be read: file is not a database" in capsys.readouterr().err


@pytest.mark.parametrize("days", ["0", "-1", "401", "two"])
def test_days_for_which_nothing_is_kept_are_refused(days: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["usage", f"--days={days}"])
    assert "a number of days from 1 to 400" in capsys.readouterr().err
