"""How the suite itself is set up: what must not become of a test that fails."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAILS_WITH_A_SERVER_OPEN = """
import asyncio
import uvloop

async def begun():
    server = await asyncio.start_server(print, "127.0.0.1", 0)
    raise KeyError("the cause")

def test_it():
    uvloop.run(begun())
"""


def test_a_test_that_fails_with_something_open_in_its_loop_fails_and_does_not_hang(tmp_path: Path) -> None:
    failing = tmp_path / "test_failing.py"
    failing.write_text(FAILS_WITH_A_SERVER_OPEN)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path)]
    ran = subprocess.run(
        [*command, "-p", "no:cacheprovider", str(failing)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 1, ran.stderr
    assert "KeyError: 'the cause'" in ran.stdout
