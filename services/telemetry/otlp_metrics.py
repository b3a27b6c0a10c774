"""Metric snapshots as OTLP, in the protocol's own messages; cumulative since the process started."""

from collections.abc import Iterable

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from services.telemetry.attributes import resource_attributes
from services.telemetry.metrics import Family, Point

CUMULATIVE = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE


def metrics_body(
    families: Iterable[Family], service: str, instance: str, *, started_unix_ns: int, now_unix_ns: int
) -> tuple[bytes, int]:
    """An export request and how many points it holds."""
    metrics = [_metric(family, started_unix_ns, now_unix_ns) for family in families]
    request = ExportMetricsServiceRequest(
        resource_metrics=[
            metrics_pb2.ResourceMetrics(
                resource=Resource(attributes=resource_attributes(service, instance)),
                scope_metrics=[metrics_pb2.ScopeMetrics(scope=InstrumentationScope(name="fairlead"), metrics=metrics)],
            )
        ]
    )
    num_points = sum(
        len(metric.sum.data_points) + len(metric.gauge.data_points) + len(metric.histogram.data_points)
        for metric in metrics
    )
    return request.SerializeToString(), num_points


def _metric(family: Family, started_unix_ns: int, now_unix_ns: int) -> metrics_pb2.Metric:
    metric = metrics_pb2.Metric(name=family.name, unit=family.unit, description=family.help)
    for point in family.points:
        labels = [
            KeyValue(key=name, value=AnyValue(string_value=value))
            for name, value in zip(family.label_names, point.labels, strict=True)
        ]
        times = {"time_unix_nano": now_unix_ns, "start_time_unix_nano": started_unix_ns}
        match family.kind:
            case "counter":
                metric.sum.aggregation_temporality = CUMULATIVE
                metric.sum.is_monotonic = True
                metric.sum.data_points.add(attributes=labels, as_double=point.value, **times)
            case "gauge":
                metric.gauge.data_points.add(attributes=labels, as_double=point.value, time_unix_nano=now_unix_ns)
            case _:
                metric.histogram.aggregation_temporality = CUMULATIVE
                metric.histogram.data_points.add(
                    attributes=labels,
                    count=sum(point.buckets),
                    sum=point.value,
                    bucket_counts=point.buckets,
                    explicit_bounds=family.bounds,
                    exemplars=_exemplars(point),
                    **times,
                )
    return metric


def _exemplars(point: Point) -> list[metrics_pb2.Exemplar]:
    return [
        metrics_pb2.Exemplar(
            as_double=one.value, trace_id=one.trace_id, time_unix_nano=int(one.unix_s * 1e9), span_id=b"\0" * 8
        )
        for one in point.exemplars
        if one is not None
    ]
