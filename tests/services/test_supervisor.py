"""What `fairlead up` says and does when its services cannot start; that it serves is a story."""

import subprocess
import sys
from pathlib import Path


def test_modules_in_the_callers_folder_are_not_taken_for_the_services_own(tmp_path: Path) -> None:
    (tmp_path / "http.py").write_text("raise SystemExit('not the standard library')")
    deployment = tmp_path / "deployment.yaml"
    deployment.write_text("version: 1\nengine: {kind: paced}\nstreams: {scheduler: unix:///proc/none/s.sock}\n")
    ended = subprocess.run(
        [
            sys.executable,
            "-P",
            "-m",
            "services.cli",
            "up",
            "--deployment",
            deployment,
            "--data-dir",
            "data",
            "--port=0",
        ],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    # The one service that cannot start says why, in its own words.
    assert "scheduler ended while starting" in ended.stderr
    assert "/proc/none" in ended.stderr
