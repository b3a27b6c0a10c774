"""Clients that take their time, and heads that do not fit: each wait has an end, and an answer if it can be."""

import asyncio
import json
import logging
import socket
from collections.abc import Callable
from typing import Any

import pytest

from services.gateway.connection import Connection, kind_of
from services.settings import HttpSettings

CHAT = "/v1/chat/completions"
LATER_S = 86_400.0
LIMITS = HttpSettings()


async def until(condition: Callable[[], Any]) -> Any:
    async with asyncio.timeout(10):
        while not (found := condition()):  # noqa: ASYNC110  a connection signals its state to nobody
            await asyncio.sleep(0)
    return found


async def connection_of(stage: Any) -> Connection:
    """The only one."""
    [connection] = await until(lambda: stage.gateway._runner.server.connections)
    return connection  # type: ignore[no-any-return]


def look(connection: Connection, after_s: float) -> None:
    connection.look(asyncio.get_running_loop().time() + after_s)


async def read_all(bare: socket.socket) -> bytes:
    """Until the gateway closes."""
    loop, data = asyncio.get_running_loop(), b""
    async with asyncio.timeout(10):
        while piece := await loop.sock_recv(bare, 2**16):
            data += piece
    bare.close()
    return data


def refusal(data: bytes) -> tuple[int, str]:
    head, body = data.split(b"\r\n\r\n", 1)
    return int(head.split()[1]), json.loads(body)["error"]["code"]


async def test_a_head_that_comes_byte_by_byte_and_never_ends_is_answered_408(stage: Any) -> None:
    bare = stage.connect()
    connection = await connection_of(stage)
    loop = asyncio.get_running_loop()
    for byte in b"GET / HT":
        before = connection._wanting_bytes
        await loop.sock_sendall(bare, bytes([byte]))
        await until(lambda before=before: connection._wanting_bytes > before)
        look(connection, LIMITS.header_s / 2)
    look(connection, LIMITS.header_s + 1)
    assert refusal(await read_all(bare)) == (408, "headers_too_slow")


async def test_a_second_request_has_its_own_time_for_its_head(stage: Any) -> None:
    bare = stage.connect()
    connection = await connection_of(stage)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(bare, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await loop.sock_recv(bare, 2**16)).startswith(b"HTTP/1.1 200")
    await until(lambda: connection._is_waiting)
    look(connection, LIMITS.header_s + 1)
    assert connection.connected
    await loop.sock_sendall(bare, b"GET /hea")
    await until(lambda: connection._wanting_bytes)
    look(connection, LIMITS.header_s + 1)
    assert refusal(await read_all(bare)) == (408, "headers_too_slow")


@pytest.mark.parametrize(
    ("sent", "limit_s"), [(b"", LIMITS.header_s), (b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n", LIMITS.idle_s)]
)
async def test_a_connection_on_which_nothing_comes_is_closed_without_a_word(
    stage: Any, sent: bytes, limit_s: float
) -> None:
    bare = stage.connect()
    connection = await connection_of(stage)
    loop = asyncio.get_running_loop()
    if sent:
        await loop.sock_sendall(bare, sent)
        assert (await loop.sock_recv(bare, 2**16)).startswith(b"HTTP/1.1 200")
    await until(lambda: connection._is_waiting)
    look(connection, 0)
    look(connection, limit_s - 1)
    assert connection.connected
    look(connection, limit_s + 1)
    assert await read_all(bare) == b""
    await until(lambda: not stage.gateway._runner.server.connections)


async def test_a_client_that_waits_for_its_answer_may_wait_as_long_as_it_takes(stage: Any) -> None:
    bare = stage.connect()
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(bare, stage.raw_request(stage.chat()))
    [submit] = await stage.backstage.submitted()
    connection = await connection_of(stage)
    look(connection, LATER_S)
    look(connection, 2 * LATER_S)
    stage.backstage.admit(submit)
    stage.backstage.speak(submit, stage.tokenizer.encode("word", add_special_tokens=False))
    assert (await loop.sock_recv(bare, 2**16)).startswith(b"HTTP/1.1 200")
    bare.close()


async def test_an_answer_that_nobody_reads_is_given_up(stage: Any) -> None:
    stage.says("word " * 400)
    bare = stage.connect(receive_buffer=4096)
    connection = await connection_of(stage)
    # Without end, as far as this client is concerned: each answer waits behind those that it has not read.
    request = stage.raw_request(stage.chat(n=16))
    while not connection.writing_paused:
        await asyncio.get_running_loop().sock_sendall(bare, request)
        for _ in range(100):
            await asyncio.sleep(0)
    look(connection, 0)
    look(connection, LIMITS.unread_s - 1)
    assert connection.connected
    look(connection, LIMITS.unread_s + 1)
    await until(lambda: not stage.gateway._runner.server.connections)
    bare.close()


async def test_a_closed_connection_with_an_unread_answer_does_not_stay(stage: Any) -> None:
    stage.says("word " * 400)
    bare = stage.connect(receive_buffer=4096)
    connection = await connection_of(stage)
    request = stage.raw_request(stage.chat(n=16))
    while not connection.writing_paused:
        await asyncio.get_running_loop().sock_sendall(bare, request)
        for _ in range(100):
            await asyncio.sleep(0)
    connection.force_close()
    look(connection, 0)
    look(connection, LIMITS.unread_s + 1)
    await until(lambda: not stage.gateway._runner.server.connections)
    bare.close()


LONG = b"x" * LIMITS.max_head_bytes
HEAD = b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"GET /" + b"x" * LIMITS.max_url_bytes + b" HTTP/1.1\r\nhost: x\r\n\r\n", (414, "url_too_long")),
        (HEAD + b"long: " + LONG + b"x\r\n\r\n", (431, "headers_too_large")),
        (HEAD + b"a: b\r\n" * 101 + b"\r\n", (431, "headers_too_large")),
        (HEAD + b"".join(b"%d: %b\r\n" % (n, LONG[:8000]) for n in range(5)) + b"\r\n", (431, "headers_too_large")),
        (HEAD + b"expect: cake\r\n\r\n", (417, "unknown_expectation")),
    ],
)
async def test_a_head_that_does_not_fit_is_refused_by_name(stage: Any, sent: bytes, expected: tuple[int, str]) -> None:
    bare = stage.connect()
    await asyncio.get_running_loop().sock_sendall(bare, sent)
    assert refusal(await read_all(bare)) == expected


async def test_a_head_in_pieces_is_refused_as_soon_as_it_is_too_large(stage: Any) -> None:
    bare = stage.connect()
    loop = asyncio.get_running_loop()
    connection = await connection_of(stage)
    await loop.sock_sendall(bare, b"GET /healthz HTTP/1.1\r\nhost: x\r\n")
    await until(lambda: connection._wanting_bytes)
    for _ in range(5):
        await loop.sock_sendall(bare, b"long: " + b"x" * 8000 + b"\r\n")
    assert refusal(await read_all(bare)) == (431, "headers_too_large")


async def test_what_cannot_be_read_is_neither_logged_nor_told_again(
    stage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for sent in (
        b"GET /canary HTTP/9.9.canary\r\n\r\n",
        b"GET http://[canary HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nauthorization: canary\x01\r\n\r\n",
        b"GET / HTTP/1.1\r\nauthor\x01ization: canary\r\n\r\n",
        b"CANARY canary\r\n\r\n",
        b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\ncanary\r\n",
    ):
        bare = stage.connect()
        await asyncio.get_running_loop().sock_sendall(bare, sent)
        data = await read_all(bare)
        assert refusal(data)[0] in {400, 401}
        assert b"anary" not in data
    assert "anary" not in caplog.text


def test_a_kind_of_error_is_said_without_what_it_quotes() -> None:
    assert kind_of(ValueError("400, message:\n  Not enough data to satisfy content length header.")) == (
        "Not enough data to satisfy content length header"
    )
    assert kind_of(ValueError("Invalid character in chunk size:\n\n  b'canary'\n  ^")) == (
        "Invalid character in chunk size"
    )
    assert kind_of(ValueError("Bad thing: b'canary'")) == "Bad thing"
    assert kind_of(None) == "it is malformed"
