"""How many of the requests of the last minutes were within their promises. Knows no clock: it is told the time."""

from collections import deque

WINDOW_S = 300.0
SLICE_S = 10.0

Slo = tuple[str, str]
"""Class and promise."""


class Attainment:
    """Counts in slices of time, of which the old ones are forgotten."""

    def __init__(self) -> None:
        self._slices: deque[tuple[int, dict[Slo, list[int]]]] = deque()
        """The number of a slice, and of each promise [looked at, broken]."""

    def count(self, slo: Slo, now: float, *, missed: bool) -> None:
        """A request has ended at `now`, seconds."""
        number = int(now / SLICE_S)
        if not self._slices or self._slices[-1][0] < number:
            self._slices.append((number, {}))
        counts = self._slices[-1][1].setdefault(slo, [0, 0])
        counts[0] += 1
        counts[1] += missed

    def shares(self, now: float) -> list[tuple[Slo, float]]:
        """Of the promises that were looked at in the last `WINDOW_S`, the share that was kept."""
        while self._slices and self._slices[0][0] <= int((now - WINDOW_S) / SLICE_S):
            self._slices.popleft()
        totals: dict[Slo, list[int]] = {}
        for _, counts in self._slices:
            for slo, (num_checked, num_missed) in counts.items():
                total = totals.setdefault(slo, [0, 0])
                total[0] += num_checked
                total[1] += num_missed
        return [(slo, 1 - num_missed / num_checked) for slo, (num_checked, num_missed) in totals.items()]
