"""The trace that a client's request belongs to, by the W3C's rules and OpenTelemetry's own reading of them."""

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import INVALID_SPAN_CONTEXT, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR = TraceContextTextMapPropagator()
_IDS = RandomIdGenerator()
TRACE_BYTES, SPAN_BYTES = 16, 8


def parents(traceparent: str) -> tuple[bytes, bytes]:
    """Trace and parent span of a `traceparent` header; a new trace and no parent if there is none that can be used."""
    context = get_current_span(_PROPAGATOR.extract({"traceparent": traceparent})).get_span_context()
    if context == INVALID_SPAN_CONTEXT:
        return _IDS.generate_trace_id().to_bytes(TRACE_BYTES, "big"), b""
    return context.trace_id.to_bytes(TRACE_BYTES, "big"), context.span_id.to_bytes(SPAN_BYTES, "big")


def new_span_id() -> bytes:
    """Of a span that begins."""
    return _IDS.generate_span_id().to_bytes(SPAN_BYTES, "big")


def traceparent_of(trace_id: bytes, span_id: bytes) -> str:
    """The header that makes this span the parent."""
    return f"00-{trace_id.hex()}-{span_id.hex()}-01"
