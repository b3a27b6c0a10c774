"""OTLP over gRPC; as `sending.Transport`."""

import grpc

from services.telemetry.sending import METRICS, TIMEOUT_S, TRACES, RefusedError, Taken, taken

GRPC_METHODS = {
    TRACES: "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
    METRICS: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
}
RETRYABLE_GRPC = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
)


class GrpcTransport:
    """OTLP/gRPC."""

    def __init__(self, target: str, headers: dict[str, str], *, encrypted: bool) -> None:
        self._target = target
        self._metadata = tuple((name.lower(), value) for name, value in headers.items())
        credentials = grpc.ssl_channel_credentials() if encrypted else None
        self._channel = (
            grpc.aio.secure_channel(target, credentials) if credentials else grpc.aio.insecure_channel(target)
        )
        self._calls: dict[str, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = {
            signal: self._channel.unary_unary(method) for signal, method in GRPC_METHODS.items()
        }

    async def send(self, signal: str, body: bytes) -> Taken:
        """As `Transport.send`."""
        try:
            said = await self._calls[signal](
                body, timeout=TIMEOUT_S, metadata=self._metadata, compression=grpc.Compression.Gzip
            )
        except grpc.aio.AioRpcError as error:
            sentence = f"grpc://{self._target}: {error.code().name} {error.details() or ''}".rstrip()
            raise RefusedError(sentence, retry=error.code() in RETRYABLE_GRPC) from error
        return taken(signal, said)

    async def close(self) -> None:
        """As `Transport.close`."""
        await self._channel.close()
