"""How metrics leave a service: a page for Prometheus, a push to a collector, and neither in the way."""

import asyncio
import gzip
import socket

import aiohttp
import pytest
from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from services.settings import MetricsSettings, TelemetrySettings
from services.telemetry import names
from services.telemetry import reporting as reporting_of
from services.telemetry.metrics import Family, Registry
from services.telemetry.reporting import Reporting
from services.troubles import Troubles


async def families() -> list[Family]:
    registry = Registry()
    registry.counter(names.REQUESTS).add(3, "finished", "")
    registry.gauge(names.JAIN).set(0.5)
    registry.histogram(names.TOKEN_GAP, (0.01, 0.1)).observe(0.05, "paid")
    return registry.families()


def settings(endpoint: str = "", port: int | None = 0) -> TelemetrySettings:
    return TelemetrySettings(endpoint=endpoint, metrics=MetricsSettings(scheduler=port))


async def test_metrics_are_served_in_the_form_asked_for() -> None:
    reporting = Reporting(settings(), "scheduler", "0", families, troubles=Troubles())
    await reporting.start()
    async with aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{reporting.port}/metrics"
        async with session.get(url) as answer:
            assert "fairlead_requests_total" in await answer.text()
            assert answer.content_type == "text/plain"
        async with session.get(url, headers={"accept": "application/openmetrics-text"}) as answer:
            assert (await answer.text()).endswith("# EOF\n")
    await reporting.stop()


async def test_a_port_that_is_taken_is_a_warning_and_is_listened_on_once_it_is_free(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting_of, "RETRY_S", 0.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        reporting = Reporting(settings(port=taken.getsockname()[1]), "scheduler", "0", families, troubles=Troubles())
        await reporting.start()
        assert reporting.port == 0
        assert "no /metrics" in caplog.text
    async with asyncio.timeout(10):
        while not reporting.port:  # noqa: ASYNC110  nothing else says it
            await asyncio.sleep(0)
    await reporting.stop()


async def test_what_is_left_is_pushed_at_the_end() -> None:
    got: asyncio.Queue[ExportMetricsServiceRequest] = asyncio.Queue()

    async def take(request: web.Request) -> web.Response:
        body = await request.read()
        got.put_nowait(
            ExportMetricsServiceRequest.FromString(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
        )
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/metrics", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reporting = Reporting(
        settings(f"http://127.0.0.1:{runner.addresses[0][1]}", None), "scheduler", "0", families, troubles=Troubles()
    )
    await reporting.start()
    assert reporting.port == 0
    await reporting.stop()
    request = got.get_nowait()
    metrics = {metric.name: metric for metric in request.resource_metrics[0].scope_metrics[0].metrics}
    assert metrics["fairlead.requests"].sum.data_points[0].as_double == 3
    assert metrics["fairlead.requests"].sum.is_monotonic
    assert metrics["fairlead.fairness.jain"].gauge.data_points[0].as_double == 0.5
    assert list(metrics["fairlead.token.gap"].histogram.data_points[0].bucket_counts) == [0, 1, 0]
    await runner.cleanup()
