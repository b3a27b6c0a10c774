"""A snapshot of metrics as Prometheus reads it, by its own library: the text format, or OpenMetrics with exemplars."""

from collections.abc import Iterable, Iterator

from prometheus_client import exposition
from prometheus_client.core import Metric as PrometheusMetric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as PrometheusExemplar

from services.telemetry.metrics import Family, Point

OPEN_METRICS = "application/openmetrics-text"
SUFFIXES = {"s": "_seconds", "tokens": "_tokens", "1": ""}
"""What a unit adds to a name, as OpenTelemetry's own exporter has it."""


def render(families: Iterable[Family], accept: str) -> tuple[bytes, str]:
    """The body and content type for a request with this `Accept` header."""
    collector = _Snapshot(families)
    if OPEN_METRICS in accept:
        body: bytes = openmetrics.generate_latest(collector)  # type: ignore[no-untyped-call]  # the library's
        return body, openmetrics.CONTENT_TYPE_LATEST
    return exposition.generate_latest(collector), exposition.CONTENT_TYPE_LATEST


def prometheus_name(name: str, unit: str) -> str:
    """A metric's name in Prometheus; samples of a counter add `_total`, of a histogram `_bucket`, `_sum`, `_count`."""
    base, suffix = name.replace(".", "_"), SUFFIXES[unit]
    return base if base.endswith(suffix) else base + suffix


class _Snapshot(Collector):
    """What `generate_latest` asks for."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[PrometheusMetric]:
        for family in self._families:
            yield _metric(family)


def _metric(family: Family) -> PrometheusMetric:
    name = prometheus_name(family.name, family.unit)
    metric = PrometheusMetric(name, family.help, family.kind)
    for point in family.points:
        labels = dict(zip(family.label_names, point.labels, strict=True))
        match family.kind:
            case "counter":
                metric.add_sample(f"{name}_total", labels, point.value)
            case "gauge":
                metric.add_sample(name, labels, point.value)
            case _:
                _add_buckets(metric, name, labels, family.bounds, point)
    return metric


def _add_buckets(
    metric: PrometheusMetric, name: str, labels: dict[str, str], bounds: tuple[float, ...], point: Point
) -> None:
    total = 0
    exemplars = point.exemplars or (None,) * len(point.buckets)
    ends = [*map(repr, bounds), "+Inf"]
    for end, count, exemplar in zip(ends, point.buckets, exemplars, strict=True):
        total += count
        shown = None
        if exemplar is not None:
            shown = PrometheusExemplar({"trace_id": exemplar.trace_id.hex()}, exemplar.value, exemplar.unix_s)
        metric.add_sample(f"{name}_bucket", {**labels, "le": end}, total, exemplar=shown)
    metric.add_sample(f"{name}_sum", labels, point.value)
    metric.add_sample(f"{name}_count", labels, total)
