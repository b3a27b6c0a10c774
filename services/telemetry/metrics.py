"""Counts, levels and distributions of one process, exact and cheap: an addition for a count, a search for an array.

Owns the numbers and their snapshot; `exposition.py` and `otlp.py` write it down for Prometheus and for collectors. Not
thread-safe: one loop owns a registry.
"""

from bisect import bisect_left
from collections.abc import Iterable
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.telemetry.names import Metric

Labels = tuple[str, ...]

SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.035, 0.05, 0.075, 0.1, 0.15),
    *(0.25, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0),
)
"""Bucket bounds of durations: below 10 ms as fine as above, because the parts of a token's time lie there."""
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)


class Exemplar(msgspec.Struct, frozen=True):
    """One observation with the trace it was made in."""

    value: float
    trace_id: bytes
    unix_s: float


class Point(msgspec.Struct, omit_defaults=True):
    """One labelled value of a metric."""

    labels: Labels
    value: float = 0.0
    """Of a histogram the sum of what was observed."""
    buckets: tuple[int, ...] = ()
    """Of a histogram: observations in each bucket, the one above the last bound included; not cumulative."""
    exemplars: tuple[Exemplar | None, ...] = ()
    """Parallel to `buckets`."""


class Family(msgspec.Struct, omit_defaults=True):
    """A metric and its points."""

    name: str
    unit: str
    kind: str
    """`counter`, `gauge` or `histogram`."""
    label_names: Labels
    help: str
    points: list[Point]
    bounds: tuple[float, ...] = ()


class Counter:
    """Only grows."""

    kind = "counter"

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._values: dict[Labels, float] = {}

    def add(self, amount: float, *labels: str) -> None:
        """Add to the count of these label values."""
        self._values[labels] = self._values.get(labels, 0.0) + amount

    def raise_to(self, total: float, *labels: str) -> None:
        """The count is this, as somebody else has counted since the start."""
        self._values[labels] = max(total, self._values.get(labels, 0.0))

    def replace(self, totals: Iterable[tuple[Labels, float]]) -> None:
        """All counts at once, as somebody else has counted: labels that are left out are shown no more."""
        self._values = dict(totals)

    def value(self, *labels: str) -> float:
        """The count of these label values."""
        return self._values.get(labels, 0.0)

    def family(self) -> Family:
        """A snapshot."""
        return _family(self.metric, self.kind, [Point(labels, value) for labels, value in self._values.items()])


class Gauge:
    """A level, as it was set last."""

    kind = "gauge"

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._values: dict[Labels, float] = {}

    def set(self, value: float, *labels: str) -> None:
        """The level of these label values is now this."""
        self._values[labels] = value

    def replace(self, values: Iterable[tuple[Labels, float]]) -> None:
        """All levels at once: labels that are left out are gone."""
        self._values = dict(values)

    def family(self) -> Family:
        """A snapshot."""
        return _family(self.metric, self.kind, [Point(labels, value) for labels, value in self._values.items()])


class Histogram:
    """How often a value fell between two bounds."""

    kind = "histogram"

    def __init__(self, metric: Metric, bounds: tuple[float, ...] = SECONDS) -> None:
        self.metric = metric
        self.bounds = bounds
        self._bounds = np.array(bounds)
        self._counts: dict[Labels, NDArray[np.int64]] = {}
        self._sums: dict[Labels, float] = {}
        self._exemplars: dict[Labels, list[Exemplar | None]] = {}

    def observe(self, value: float, *labels: str) -> None:
        """Count one value."""
        # A value on a bound belongs below it, as `le` says.
        self._of(labels)[bisect_left(self.bounds, value)] += 1
        self._sums[labels] += value

    def observe_all(self, values: NDArray[np.float64], *labels: str) -> None:
        """Count an array of them."""
        counts = self._of(labels)
        counts += np.bincount(np.searchsorted(self._bounds, values, side="left"), minlength=len(counts))
        self._sums[labels] += float(values.sum())

    def totals(self, *labels: str) -> tuple[int, float]:
        """How many values of these labels were observed, and their sum."""
        counts = self._counts.get(labels)
        return (0, 0.0) if counts is None else (int(counts.sum()), self._sums[labels])

    def exemplify(self, exemplar: Exemplar, *labels: str) -> None:
        """A trace in which such a value was observed; the newest of each bucket is kept."""
        kept = self._exemplars.setdefault(labels, [None] * (len(self.bounds) + 1))
        kept[bisect_left(self.bounds, exemplar.value)] = exemplar

    def family(self) -> Family:
        """A snapshot."""
        points = [
            Point(labels, self._sums[labels], tuple(counts.tolist()), tuple(self._exemplars.get(labels, ())))
            for labels, counts in self._counts.items()
        ]
        return _family(self.metric, self.kind, points, self.bounds)

    def _of(self, labels: Labels) -> NDArray[np.int64]:
        counts = self._counts.get(labels)
        if counts is None:
            counts = self._counts[labels] = np.zeros(len(self.bounds) + 1, np.int64)
            self._sums[labels] = 0.0
        return counts


Instrument = Counter | Gauge | Histogram
_Instrument = TypeVar("_Instrument", Counter, Gauge, Histogram)


class Registry:
    """The instruments of one process."""

    def __init__(self) -> None:
        self._instruments: list[Instrument] = []

    def counter(self, metric: Metric) -> Counter:
        """A new counter."""
        return self._add(Counter(metric))

    def gauge(self, metric: Metric) -> Gauge:
        """A new gauge."""
        return self._add(Gauge(metric))

    def histogram(self, metric: Metric, bounds: tuple[float, ...] = SECONDS) -> Histogram:
        """A new histogram."""
        return self._add(Histogram(metric, bounds))

    def families(self) -> list[Family]:
        """A snapshot of all that have a point."""
        return [family for family in (instrument.family() for instrument in self._instruments) if family.points]

    def _add(self, instrument: _Instrument) -> _Instrument:
        self._instruments.append(instrument)
        return instrument


def _family(metric: Metric, kind: str, points: list[Point], bounds: tuple[float, ...] = ()) -> Family:
    return Family(metric.name, metric.unit, kind, metric.labels, metric.help, points, bounds)
