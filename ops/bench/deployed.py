"""The four services as a user starts them, for benchmarks that look from outside."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from services.settings import REPOSITORY, Deployment

STOP_S = 60.0


def start(deployment: Deployment, folder: Path, stack: contextlib.ExitStack) -> tuple[int, str]:
    """Port and key of the services, which `stack` stops; their deployment file and log are in `folder`.

    Raises:
        RuntimeError: they did not start; it has what they said.
    """
    file = folder / "deployment.yaml"
    file.write_bytes(msgspec.yaml.encode(deployment))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "up", "--deployment", str(file)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    stack.callback(_stop, process)
    assert process.stdout is not None  # noqa: S101  it was asked for
    said = ""
    for line in process.stdout:
        said += line
        if "curl " in line:
            break
    found = re.search(r"curl http://[^:]+:(\d+)/.*Bearer ([\w-]+)", said)
    if found is None:
        raise RuntimeError(f"the services did not start:\n{said}{(folder / 'log').read_text()}")
    os.set_blocking(process.stdout.fileno(), False)
    return int(found[1]), found[2]


def _stop(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGINT)
    process.wait(STOP_S)
    if process.stdout is not None:
        process.stdout.close()
