"""How a gateway leaves: nobody new, an answer and a goodbye for whoever is connected."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.gateway import draining
from services.gateway.service import GatewayService
from services.settings import Deployment
from tests.services.gateway.conftest import Setup

KEY = "fl-test-key"
CHAT = "/v1/chat/completions"


async def test_who_is_connected_is_answered_and_told_to_go_and_who_comes_is_not_accepted(stage: Any) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{stage.url}/healthz") as answer:
            assert "connection" not in answer.headers
        drained = asyncio.create_task(stage.gateway.drain())
        await asyncio.sleep(0)
        async with session.get(f"{stage.url}/readyz") as answer:
            assert (answer.status, answer.headers["connection"]) == (503, "close")
            assert (await answer.json())["reasons"] == ["draining"]
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(f"{stage.url}/readyz")
        await drained


async def test_a_request_that_comes_by_a_kept_connection_is_served_to_its_end(stage: Any) -> None:
    stage.says("hello")
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {KEY}"}) as session:
        await (await session.get(f"{stage.url}/healthz")).read()
        drained = asyncio.create_task(stage.gateway.drain())
        await asyncio.sleep(0)
        async with session.post(stage.url + CHAT, json=stage.chat()) as answer:
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert (await answer.json())["choices"][0]["message"]["content"] == "hello"
        await drained


LONG = pytest.mark.parametrize("stage", [Setup(http={"drain_s": 60})], indirect=True)


@LONG
async def test_a_connection_on_which_nothing_happens_holds_nobody_up(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "LINGER_S", 0.01)
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.gateway.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 ")
    async with asyncio.timeout(10):
        await stage.gateway.drain()
        assert await reader.read() == b""
    writer.close()


@LONG
async def test_a_request_of_which_a_part_has_come_is_answered_when_the_rest_has(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "LINGER_S", 0.01)
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.gateway.port)
    writer.write(b"GET /healthz HTTP/1.1\r\n")
    (connection,) = await stage.backstage.until(lambda: stage.gateway._runner.server.connections)
    while not connection._wanting_bytes:  # noqa: ASYNC110  on a socket
        await asyncio.sleep(0)
    lingered = asyncio.Event()
    server = stage.gateway._runner.server
    monkeypatch.setattr(server, "pre_shutdown", lambda close=server.pre_shutdown: (close(), lingered.set()))
    drained = asyncio.create_task(stage.gateway.drain())
    await lingered.wait()
    writer.write(b"host: x\r\n\r\n")
    async with asyncio.timeout(10):
        answer = await reader.read()
        await drained
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"close" in answer.lower()
    writer.close()


async def test_what_takes_longer_than_the_limit_ends_with_a_named_error(stage: Any) -> None:
    running = asyncio.create_task(stage.post(CHAT, stage.chat()))
    [submit] = await stage.backstage.submitted()
    await stage.gateway.drain()
    assert (await running)[1]["error"]["code"] == "draining"
    assert await stage.backstage.cancelled(submit.request)


async def test_what_takes_time_to_close_is_closed_together_and_the_thread_of_the_store_last(
    checkpoint: Path, tmp_path: Path
) -> None:
    begun, closed = asyncio.Barrier(3), []

    class Slow:
        def __init__(self, name: str) -> None:
            self.name = name

        async def close(self) -> None:
            await begun.wait()
            closed.append(self.name)

        stop = close

    class Store:
        def close(self) -> None:
            closed.append("store")

    gateway: Any = GatewayService(Deployment(model=str(checkpoint), data=str(tmp_path), run=str(tmp_path)).resolved())
    gateway._reporting, gateway.keeper, gateway.links = Slow("reporting"), Slow("keeper"), [Slow("link")]
    gateway._store = Store()
    async with asyncio.timeout(10):
        await gateway.stop()
    assert sorted(closed[:3]) == ["keeper", "link", "reporting"]
    assert closed[3:] == ["store"]
