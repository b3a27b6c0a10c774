"""`fairlead top` and `fairlead explain`: what they print where there is little to print."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from services.cli import main
from services.top import screen


def look(**more: Any) -> str:
    document = {
        "point": {"classes": {}, "tenants": {}},
        "telemetry": {"traced": True, "trouble": "", "dropped": {}},
        "silent": {},
        "num_running": 3,
        "misses": [],
        "model": "demo",
        "missing": [],
        "num_executors": 1,
        "policy": {"name": "simple", "revision": 2},
        "promises": [],
    }
    console = Console(width=300)
    with console.capture() as capture:
        console.print(screen(document | more))
    return capture.get().splitlines()[0].rstrip()


def test_the_first_line_says_what_the_figures_do_not_hold() -> None:
    assert look() == "fairlead demo, policy simple@2, 1 executor, 3 requests running"
    assert look(silent={"gateway-2": "gives no answer"}).endswith(
        "  gateway-2 gives no answer: what it serves is missing here"
    )
    gone = {"traced": True, "trouble": "the keeper of traces ended", "dropped": {}}
    assert look(num_running=None, telemetry=gone) == (
        "fairlead demo, policy simple@2, 1 executor  nothing of requests is known: the keeper of traces ended"
    )


@pytest.mark.parametrize("command", [["top", "--once"], ["explain", "last"]])
def test_what_does_not_work_is_said_in_the_name_of_the_command(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "admin.key"
    key.write_text("fl-admin-x")
    key.chmod(0o600)
    assert main([*command, "--url", "http://127.0.0.1:1", "--key-file", str(key)]) == 2
    assert capsys.readouterr().err.startswith(f"fairlead {command[0]}: no gateway at http://127.0.0.1:1: ")
