"""How far an executor has come with loading its model: said in a file of the run folder, shown on a terminal.

The executor is a process whose output is a log; who waits looks at the one that started it. Owns the file and the bar.
Knows no engine.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from services.progress import progress_bar

PERIOD_S = 0.1
MIB = 2**20


def loading_file(run_folder: str) -> Path:
    """The file that an executor keeps while it loads."""
    return Path(run_folder) / "executor.loading"


class LoadingFile:
    """The executor's side. What cannot be written keeps nobody from loading."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told_s = 0.0

    def tell(self, done_bytes: int, total_bytes: int) -> None:
        """So many bytes of the weights are read; not every call is passed on."""
        now = time.monotonic()
        if now - self._told_s >= PERIOD_S:
            self._told_s = now
            with suppress(OSError):
                self._path.write_text(f"{done_bytes} {total_bytes}\n")

    def remove(self) -> None:
        """It is loaded, or never will be."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


class LoadingBar:
    """The side of who waits: a bar as long as there is something to show."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shown = ExitStack()
        self._progress: Callable[[int, int], None] | None = None

    def look(self) -> bool:
        """Show what the file says now; whether there is a bar."""
        told = self._read()
        if told is not None:
            if self._progress is None:
                self._progress = self._shown.enter_context(progress_bar("loading the model, MiB"))
            self._progress(*(num_bytes // MIB for num_bytes in told))
        elif not self._path.exists():
            self.close()
        return self._progress is not None

    def close(self) -> None:
        """The bar goes."""
        self._shown.close()
        self._progress = None

    def _read(self) -> tuple[int, int] | None:
        """None: nothing is being loaded, or the file is being written just now."""
        try:
            done, total = map(int, self._path.read_text().split())
        except (OSError, ValueError):
            return None
        return done, total
