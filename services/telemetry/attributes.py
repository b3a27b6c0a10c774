"""OTLP attributes: of anything, and of the resource that speaks."""

import numpy as np
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.sdk.resources import Resource as SdkResource

from services.telemetry import names

Value = str | int | float


def resource_attributes(service: str, instance: str) -> list[KeyValue]:
    """Who speaks; with what `OTEL_RESOURCE_ATTRIBUTES` says of where."""
    ours = {"service.name": names.SERVICE.format(service), "service.instance.id": instance}
    found = SdkResource.create().merge(SdkResource(ours))
    return attributes_of(
        {name: value for name, value in found.attributes.items() if isinstance(value, str | int | float)}
    )


def attributes_of(values: dict[str, Value]) -> list[KeyValue]:
    """Names and values as the protocol has them."""
    return [KeyValue(key=name, value=_value(value)) for name, value in values.items()]


def _value(value: Value) -> AnyValue:
    match value:
        case str():
            return AnyValue(string_value=value)
        case int() | np.integer():
            return AnyValue(int_value=value)
        case _:
            return AnyValue(double_value=value)
