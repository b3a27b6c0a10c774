"""How a gateway leaves: nobody new, an answer and a goodbye for whoever is connected."""

import asyncio
from typing import Any

import aiohttp
import pytest

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


async def test_what_takes_longer_than_the_limit_ends_with_a_named_error(stage: Any) -> None:
    running = asyncio.create_task(stage.post(CHAT, stage.chat()))
    [submit] = await stage.backstage.submitted()
    await stage.gateway.drain()
    assert (await running)[1]["error"]["code"] == "draining"
    assert await stage.backstage.cancelled(submit.request)
