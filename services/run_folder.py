"""What `fairlead up` itself puts into its run folder, and how that is emptied in the end. Knows no processes."""

import contextlib
import re
import stat
from collections.abc import Iterable
from pathlib import Path

import msgspec

from services.files import replace
from services.health import ready_file
from services.loading import loading_file
from services.settings import STARTED, Deployment

KEEPERS = re.compile(r"(gateway(-\d+)?)?\.\d+")
"""Sockets of the gateways' keepers, with their names and before they have them: whoever is killed leaves its own."""


def deployment_file(run_folder: str) -> Path:
    """The deployment that the processes are started for."""
    return Path(run_folder) / "deployment.json"


def write_deployment(deployment: Deployment) -> None:
    """JSON is YAML: the children read it with the same loader, and so do the commands given the data folder.

    Raises:
        OSError: a folder cannot be written.
    """
    content = msgspec.json.encode(deployment)
    replace(Path(deployment.data) / STARTED, content)
    replace(deployment_file(deployment.run), content)


def tidy(run_folder: str, names: Iterable[str]) -> None:
    """Remove what processes of these names have left, and the folder if nothing else is in it: whoever named it may
    keep something there.
    """
    folder = Path(run_folder)
    left = [loading_file(run_folder), deployment_file(run_folder)]
    for name in names:
        ready = ready_file(run_folder, name)
        left += [ready, ready.with_suffix(".new"), folder / f"{name}.sock"]
    with contextlib.suppress(OSError):
        left += [
            path for path in folder.iterdir() if KEEPERS.fullmatch(path.name) and stat.S_ISSOCK(path.lstat().st_mode)
        ]
    for path in left:
        with contextlib.suppress(OSError):
            path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()
