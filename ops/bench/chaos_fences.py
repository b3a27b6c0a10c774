"""Whether a process that was stopped can still do harm when it is woken: who had left it by then, as their logs say.

Owns what each neighbour says when it leaves. A stream that was left carries nothing any more, and the next one is of a
newer epoch. Knows no signals.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

LEFT: Mapping[str, Mapping[str, str]] = {
    "executor": {"scheduler": r"INFO scheduler: executor \S+ disconnected: "},
    "scheduler": {
        "admission": r"INFO admission: scheduler \S+ disconnected: ",
        "executor": r"WARNING executor: lost the scheduler: ",
        "gateway": r"WARNING gateway\S*: stream to scheduler lost: ",
        "gateway-2": r"WARNING gateway\S*: stream to scheduler lost: ",
    },
}
"""Of a service that is stopped: its neighbours, and what each logs when it has closed its stream to it."""


class Fence(NamedTuple):
    """Of one process at the moment at which it is woken."""

    is_gone: bool
    """It was killed meanwhile: nobody is woken."""
    present: tuple[str, ...]
    """Neighbours that would still listen to what it has to say from before."""

    @property
    def holds(self) -> bool:
        """Nothing from before can be heard of it."""
        return self.is_gone or not self.present


class Watch:
    """The logs of a stopped process's neighbours, from the moment at which it was stopped."""

    def __init__(self, name: str, logs: Path) -> None:
        self._logs = {neighbour: logs / f"{neighbour}.log" for neighbour in LEFT[name]}
        self._said = LEFT[name]
        self._ends = {neighbour: _size(log) for neighbour, log in self._logs.items()}

    def look(self, *, is_gone: bool) -> Fence:
        """Who has left it by now, and who has not."""
        present = [name for name in self._logs if not re.search(self._said[name], self._since(name))]
        return Fence(is_gone, tuple(present))

    def _since(self, neighbour: str) -> str:
        log = self._logs[neighbour]
        return log.read_bytes()[self._ends[neighbour] :].decode(errors="replace") if log.exists() else ""


def words(fences: Iterable[Fence]) -> str:
    """For a note."""
    counts = Counter("killed before" if each.is_gone else "woken" for each in fences if each.holds)
    late = [f"{', '.join(each.present)} had not left it" for each in fences if not each.holds]
    held = {"woken": "woken when all its neighbours had left it", "killed before": "killed before it could be woken"}
    return "; ".join([*(f"{counts[what]} {said}" for what, said in held.items() if counts[what]), *late])


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0
