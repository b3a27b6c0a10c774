"""The keeper as a process: what goes in comes out at a collector, and trouble there costs records alone."""

import asyncio
import gzip
import subprocess
from collections.abc import AsyncIterator
from concurrent import futures
from pathlib import Path

import grpc
import msgspec
import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from services.telemetry import keeper_link, names
from services.telemetry.keeper.arrays import unpack
from services.telemetry.keeper.settings import KeeperSettings
from services.telemetry.keeper_link import KeeperError, KeeperLink
from services.telemetry.records import Ended, PolicyInForce
from tests.services.telemetry.records import began, let, step

KEEP_ALL = PolicyInForce(1, "slai", [("paid", 0.5, 0.1)], otherwise=1.0)


class Collector:
    """Takes what it is sent, or answers with a status."""

    def __init__(self) -> None:
        self.spans: list[object] = []
        self.status = 200

    def take(self, body: bytes) -> None:
        request = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            named = {one.key: one.value.string_value for one in resource.resource.attributes}
            service = named["service.name"]
            self.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]

    async def http(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.path == "/v1/traces" and self.status == 200:
            self.take(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
        return web.Response(status=self.status)


class GrpcCollector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self.collector = collector

    def Export(self, request, context):
        self.collector.take(request.SerializeToString())
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture(params=["http", "grpc"])
async def collector(request) -> AsyncIterator[tuple[Collector, str]]:
    collector = Collector()
    if request.param == "grpc":
        server = grpc.server(futures.ThreadPoolExecutor(1))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(GrpcCollector(collector), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield collector, f"grpc://127.0.0.1:{port}"
        server.stop(None)
        return
    app = web.Application()
    app.router.add_post("/v1/{signal}", collector.http)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield collector, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def tell(endpoint: str, *, num_tokens: int = 3) -> KeeperLink:
    link = KeeperLink()
    await link.start(KeeperSettings("gateway", "1", "scheduler-1", endpoint=endpoint))
    link.record(KEEP_ALL)
    link.record(began(1))
    link.record(let(1))
    for number in range(1, num_tokens + 1):
        link.record(step(number, [1], [number * 100 + 95]))
    link.record(Ended(1, "finished", "", num_tokens, num_tokens * 100 + 99))
    return link


async def test_a_request_becomes_one_tree_of_spans(collector) -> None:
    received, endpoint = collector
    link = await tell(endpoint)
    await link.close()
    steps = {span.span_id: span for _, span in received.spans if span.name == names.STEP}
    by_id = {span.span_id: span for _, span in received.spans if span.name != names.STEP}
    assert len(by_id) + len(steps) == len(received.spans)
    (root,) = (span for span in by_id.values() if not span.parent_span_id)
    assert root.name == "chat demo"
    assert all(span.parent_span_id in by_id for span in by_id.values() if span is not root), "an orphan"
    assert {span.trace_id for span in by_id.values()} == {b"t" * 16}
    assert {service for service, _ in received.spans} == {
        "fairlead-gateway",
        "fairlead-admission",
        "fairlead-scheduler",
    }
    tokens = [span for span in by_id.values() if span.name == names.TOKEN]
    assert [span.end_time_unix_nano - span.start_time_unix_nano for span in tokens] == [100, 100]
    assert {span.links[0].span_id for span in tokens} <= set(steps), "a token is linked to its step"
    assert all(step.links[0].span_id == root.span_id for step in steps.values()), "and a step to its requests"
    (decode,) = (span for span in by_id.values() if span.name == names.DECODE)
    attributes = {one.key: one.value for one in decode.attributes}
    assert len(unpack(attributes[names.TOKENS].string_value)) == 3


async def test_a_scheduler_that_started_again_counts_anew_and_gives_no_id_twice(collector) -> None:
    received, endpoint = collector
    link = KeeperLink()
    await link.start(KeeperSettings("gateway", "1", "scheduler-1", endpoint=endpoint))
    for record in (KEEP_ALL, began(1), let(1)):
        link.record(record)
    for epoch in (50, 60):
        for number in (1, 2):
            record = step(number, [1], [epoch * 100 + number])
            link.record(msgspec.structs.replace(record, scheduler_epoch=epoch))
    link.record(Ended(1, "finished", "", 4, 7000))
    await link.close()
    steps = [span for _, span in received.spans if span.name == names.STEP]
    assert len({(span.trace_id, span.span_id) for span in steps}) == len(steps) == 4
    tokens = [span for _, span in received.spans if span.name == names.TOKEN]
    assert [span.links[0].span_id for span in tokens] == [span.span_id for span in steps[1:]]


async def test_what_the_collector_is_to_be_told_is_in_no_argument_of_a_process() -> None:
    link = KeeperLink()
    await link.start(KeeperSettings("gateway", "1", "scheduler-1", headers={"authorization": "Bearer of-collector"}))
    arguments = await asyncio.to_thread(Path(f"/proc/{link._process.pid}/cmdline").read_bytes)
    assert b"of-collector" not in arguments
    assert (await link.ask("live")).startswith(b"{")
    await link.close()


async def test_the_keeper_tells_a_requests_story() -> None:
    link = await tell("")
    story = msgspec.json.decode(await link.ask("request", "answer-1"))["story"]
    assert story["outcome"] == "finished"
    assert sum(story["first"].values()) == pytest.approx(story["ttft_s"])
    assert len(story["choices"][0]["token_parts_s"]) == 2
    assert msgspec.json.decode(await link.ask("request", "nobody")) == {"story": None, "silent": {}}
    assert [line["id"] for line in msgspec.json.decode(await link.ask("recent"))["requests"]] == ["answer-1"]
    await link.close()


async def test_a_keeper_that_is_behind_hears_of_ends_all_the_same(monkeypatch) -> None:
    link = await tell("")
    for record in (began(2), let(2)):
        link.record(record)
    monkeypatch.setattr(keeper_link, "MAX_UNREAD_BYTES", -1)
    link.record(began(3))
    link.record(Ended(2, "finished", "", 0, 9000))
    assert link.num_dropped == 1
    monkeypatch.undo()
    recent = msgspec.json.decode(await link.ask("recent"))["requests"]
    assert [line["id"] for line in recent][:2] == ["answer-2", "answer-1"]
    await link.close()


async def test_a_keeper_that_ended_is_started_again_and_told_what_is_in_force(collector) -> None:
    received, endpoint = collector
    link = await tell(endpoint)
    await link.ask("live")
    assert link._process is not None
    link._process.kill()
    with pytest.raises(KeeperError, match="ended"):
        await link.ask("recent")
    assert link._starting is not None
    await link._starting
    # Under a policy that keeps every span, which nobody tells it but the link.
    steps = [step(number, [2], [number * 100 + 95]) for number in (1, 2)]
    for record in (began(2), let(2), *steps, Ended(2, "finished", "", 2, 299)):
        link.record(record)
    assert [one["id"] for one in msgspec.json.decode(await link.ask("recent"))["requests"]] == ["answer-2"]
    await link.close()
    assert sum(span.name == names.TOKEN for _, span in received.spans) == 1
    assert link._process.returncode == 0


async def test_without_a_keeper_records_are_counted_and_questions_answered_with_the_reason(monkeypatch) -> None:
    monkeypatch.setattr(keeper_link, "MOST_CRASHES", 0)
    link = await tell("")
    assert link._process is not None
    link._process.kill()
    with pytest.raises(KeeperError, match="ended"):
        await link.ask("recent")
    link.record(KEEP_ALL)
    assert link.num_dropped == 1
    with pytest.raises(KeeperError, match="not there"):
        await link.ask("recent")
    await link.close()


async def test_a_keeper_that_ends_before_it_has_read_its_settings_ends_nothing_else(monkeypatch, caplog) -> None:
    started = subprocess.Popen

    def ended(_: list[str], **given) -> "subprocess.Popen[bytes]":
        process = started(["true"], **given)
        process.wait()
        return process

    monkeypatch.setattr(keeper_link, "MOST_CRASHES", 0)
    monkeypatch.setattr(subprocess, "Popen", ended)
    link = KeeperLink()
    await link.start(KeeperSettings("gateway", "1", "scheduler-1"))
    with pytest.raises(KeeperError, match=r"ended|not there"):
        await link.ask("recent")
    await link.close()
    assert "nothing is traced until a restart" in caplog.text
