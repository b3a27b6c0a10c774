"""As many clients at a time as may be, and an answer for those who come after."""

import asyncio
import json
import resource
import socket
from typing import Any

import pytest

from services.gateway import door
from services.gateway.door import Door
from services.settings import HttpSettings
from tests.services.gateway.conftest import Setup


async def read_all(bare: socket.socket) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    async with asyncio.timeout(10):
        while piece := await loop.sock_recv(bare, 2**16):
            data += piece
    bare.close()
    return data


async def inside(stage: Any, count: int) -> None:
    async with asyncio.timeout(10):
        while len(stage.gateway._runner.server.connections) != count:  # noqa: ASYNC110  nobody is told
            await asyncio.sleep(0)


@pytest.mark.parametrize("stage", [Setup(http={"max_connections": 2})], indirect=True)
async def test_one_client_too_many_is_told_when_to_come_again_and_then_may(stage: Any) -> None:
    first, second = stage.connect(), stage.connect()
    await inside(stage, 2)
    head, _, body = (await read_all(stage.connect())).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: 1\r\n" in head
    assert json.loads(body)["error"]["code"] == "too_many_connections"
    first.close()
    await inside(stage, 1)
    third = stage.connect()
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(third, b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert (await read_all(third)).startswith(b"HTTP/1.1 200")
    second.close()


@pytest.mark.parametrize("stage", [Setup(http={"max_connections": 2})], indirect=True)
async def test_of_many_who_come_at_once_no_more_are_let_in_than_may_be(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "MOST_TURNED_AWAY", 3)
    clients = [stage.connect() for _ in range(8)]

    async def first_words(client: socket.socket) -> bytes:
        try:
            return (await read_all(client))[:12]
        except ConnectionResetError:
            client.close()
            return b""

    # Some are told why, and are there for a moment; those who come meanwhile are cut off.
    answers = await asyncio.gather(*map(first_words, clients[2:]))
    assert answers.count(b"HTTP/1.1 503") >= 3
    assert set(answers) <= {b"HTTP/1.1 503", b""}
    assert len(stage.gateway._runner.server.connections) == 2
    for client in clients[:2]:
        client.close()


def test_there_are_never_more_clients_than_files_that_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    server: Any = None
    loop: Any = None
    assert Door(server, HttpSettings(), loop).most == 1024 - door.KEPT
    assert Door(server, HttpSettings(max_connections=500), loop).most == 500
