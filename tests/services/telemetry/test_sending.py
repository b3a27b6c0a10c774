"""What is said of a collector that does not take everything."""

import logging
from concurrent import futures

import grpc
import pytest
from aiohttp import web
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from services.telemetry.sending import METRICS, TRACES, RefusedError, Sender, Taken, taken, transport


class TracesOnly:
    """Of a backend that keeps traces and nothing else."""

    def __init__(self) -> None:
        self.down = False

    async def send(self, signal: str, body: bytes) -> Taken:
        del body
        if self.down or signal == METRICS:
            raise RefusedError(f"no {signal} here", retry=False)
        return Taken()

    async def close(self) -> None:
        """Nothing is open."""


async def test_a_collector_without_metrics_is_one_line_however_often_it_takes_traces(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    backend = TracesOnly()
    sender = Sender(backend)
    for down in (False, False, True, False):
        backend.down = down
        for signal in (TRACES, METRICS):
            sender.put(signal, b"", 3)
        await sender.drain(10)
    await sender.close()
    assert caplog.messages == [
        "the collector did not take metrics: no metrics here; serving is not affected",
        "the collector did not take traces: no traces here; serving is not affected",
        "the collector takes traces again",
    ]
    assert (sender.sent, sender.dropped) == ({TRACES: 9, METRICS: 0}, {TRACES: 3, METRICS: 12})


PARTLY = trace_service_pb2.ExportTraceServiceResponse(
    partial_success=trace_service_pb2.ExportTracePartialSuccess(rejected_spans=2, error_message="too old")
)


class Answers:
    """A collector that takes everything and says what it was told to."""

    def __init__(self, body: bytes, content_type: str = "application/x-protobuf") -> None:
        self.body = body
        self.content_type = content_type

    async def answer(self, request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=self.body, content_type=self.content_type)

    async def start(self) -> tuple[web.AppRunner, str]:
        app = web.Application()
        app.router.add_post("/v1/{signal}", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


async def test_what_a_collector_rejects_of_a_message_counts_as_dropped_and_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    answers = Answers(PARTLY.SerializeToString())
    runner, endpoint = await answers.start()
    sender = Sender(transport(endpoint, {}))
    for num_spans in (5, 5, 1):
        sender.put(TRACES, b"", num_spans)
        await sender.drain(10)
    answers.body = b""
    sender.put(METRICS, b"", 4)
    await sender.drain(10)
    await sender.close()
    await runner.cleanup()
    assert (sender.sent, sender.dropped) == ({TRACES: 6, METRICS: 4}, {TRACES: 5, METRICS: 0})
    said = [line for line in caplog.messages if "collector" in line]
    assert said == [
        "the collector kept only a part of the traces (2 of 5 not): too old; what it rejects is counted as dropped"
    ]


async def test_an_answer_that_is_no_export_response_is_a_refusal_where_it_says_that_it_is_one() -> None:
    for body, content_type, num_sent in ((b"{}", "application/json", 3), (b"{}", "application/x-protobuf", 0)):
        runner, endpoint = await Answers(body, content_type).start()
        sender = Sender(transport(endpoint, {}))
        sender.put(TRACES, b"", 3)
        await sender.drain(10)
        await sender.close()
        await runner.cleanup()
        assert (sender.sent[TRACES], sender.dropped[TRACES]) == (num_sent, 3 - num_sent)


class Points(metrics_service_pb2_grpc.MetricsServiceServicer):
    def Export(self, request, context):
        del request, context
        rejected = metrics_service_pb2.ExportMetricsPartialSuccess(rejected_data_points=1)
        return metrics_service_pb2.ExportMetricsServiceResponse(partial_success=rejected)


async def test_over_grpc_a_part_is_rejected_just_so() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Points(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    sender = Sender(transport(f"grpc://127.0.0.1:{port}", {}))
    sender.put(METRICS, b"", 3)
    await sender.drain(10)
    await sender.close()
    server.stop(None)
    assert (sender.sent[METRICS], sender.dropped[METRICS]) == (2, 1)
    assert taken(TRACES, b"") == Taken()
