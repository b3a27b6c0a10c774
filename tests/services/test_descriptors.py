"""The limit on open files, in processes that have one."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from services.descriptors import TooFewError, raise_limit
try:
    print(raise_limit(), resource.getrlimit(resource.RLIMIT_NOFILE))
except TooFewError as error:
    print(error)
"""


TOO_FEW = "only 64 files may be open at once, and 256 are needed; raise the hard limit"


@pytest.mark.parametrize(
    ("soft", "hard", "said"), [(64, 700, "700 (700, 700)"), (700, 700, "700 (700, 700)"), (64, 64, TOO_FEW)]
)
def test_the_limit_is_raised_as_far_as_it_may_be_and_too_few_is_said(soft: int, hard: int, said: str) -> None:
    program = LIMITED.format(soft=soft, hard=hard)
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.startswith(said)


@pytest.mark.parametrize("arguments", [["up"], ["serve", "gateway"]])
def test_nothing_starts_that_could_serve_nobody(arguments: list[str], tmp_path: Path) -> None:
    where = ["--data-dir", str(tmp_path / "data"), "--port", "0"] if arguments == ["up"] else []
    command = ["bash", "-c", 'ulimit -n 64 && exec "$@"', "limited", sys.executable, "-m", "services.cli"]
    ended = subprocess.run([*command, *arguments, *where], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert TOO_FEW in ended.stderr
    assert not (tmp_path / "data").exists()
