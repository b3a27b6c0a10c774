"""How much of anything one request, and one key, may have; and a refusal that names what, how much and the bound."""

import asyncio
import gc
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from services.wire import Submit
from tests.services.gateway.conftest import KEY, Setup

CHAT, COMPLETIONS, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
TURN = {"role": "user", "content": "x"}
TOOL = {"type": "function", "function": {"name": "a"}}


def deep(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("path", "more", "says"),
    [
        (CHAT, {"messages": [TURN] * 4097}, "messages: has 4097 entries; at most 4096 are allowed"),
        (MESSAGES, {"max_tokens": 1, "messages": [TURN] * 4097}, "messages: has 4097 entries; at most 4096"),
        (CHAT, {"messages": [TURN], "tools": [TOOL] * 257}, "tools: has 257 entries; at most 256 are allowed"),
        (COMPLETIONS, {"prompt": "x", "stop": ["x"] * 17}, "stop: has 17 entries; at most 16 are allowed"),
        (COMPLETIONS, {"prompt": "x", "stop": "x" * 1025}, "stop: has 1025 characters; at most 1024 are allowed"),
        (COMPLETIONS, {"prompt": "x", "stop": ["x" * 1025]}, "has 1025 characters; at most 1024 are allowed"),
        (
            COMPLETIONS,
            {"prompt": "x", "logit_bias": {str(token): 1 for token in range(1025)}},
            "logit_bias: has 1025 entries; at most 1024 are allowed",
        ),
        (COMPLETIONS, {"prompt": "x", "stop_token_ids": [1] * 129}, "stop_token_ids: has 129 entries; at most 128"),
        (
            CHAT,
            {
                "messages": [TURN],
                "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": deep(130)}},
            },
            "the body is nested 134 deep; at most 128 is allowed",
        ),
        (COMPLETIONS, {"prompt": [[]] * 60_000}, "60004 lists, objects and members of objects; at most 50000"),
        (COMPLETIONS, {"prompt": "x " * 2**20}, "a text of 2097152 characters, which are at least"),
        (COMPLETIONS, {"prompt": "x", "a\nb" * 1000: 1}, "a b"),
        (COMPLETIONS, {"prompt": "x", "logit_bias": {"1" * 5000: 1}}, "is not a token id of this model"),
        (COMPLETIONS, {"prompt": [1] * 9000}, "a sequence here has at most 8192 tokens; prompt has 9000; shorten it"),
        ("/v1/embeddings", {"input": [[1], [1] * 9000]}, "a sequence here has at most 8192 tokens; input has 9000"),
        (COMPLETIONS, {"prompt": "x", "service_tier": "x" * 65}, "service_tier: has 65 characters; at most 64"),
        (CHAT, {"messages": [TURN], "service_tier": "x" * 65}, "service_tier: has 65 characters; at most 64"),
        ("/v1/embeddings", {"input": "x", "service_tier": "x" * 65}, "service_tier: has 65 characters"),
        (MESSAGES, {"max_tokens": 1, "messages": [TURN], "service_tier": "x" * 65}, "service_tier: has 65 characters"),
    ],
)
async def test_what_is_too_much_is_refused_with_its_bound_and_its_size(
    stage: Any, path: str, more: dict[str, Any], says: str
) -> None:
    status, document, _ = await stage.post(path, {"model": "demo", **more})
    message = document["error"]["message"]
    assert status == 400
    assert says in message
    assert len(message) <= 1000
    assert "\n" not in message
    assert stage.backstage.all_of(Submit) == []


async def test_arguments_of_a_call_are_bounded_too(stage: Any) -> None:
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "a", "arguments": '{"a":' + "[" * 990 + "]" * 990 + "}"},
    }
    turns = [TURN, {"role": "assistant", "content": None, "tool_calls": [call]}, TURN]
    status, document, _ = await stage.post(CHAT, {"model": "demo", "messages": turns})
    assert status == 400
    assert "messages[1].tool_calls[0].function.arguments is nested 991 deep" in document["error"]["message"]


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "x" * 1000])
async def test_an_encoding_that_is_not_known_is_refused_and_no_library_named(stage: Any, encoding: str) -> None:
    status, document, _ = await stage.post(
        COMPLETIONS, {"model": "demo", "prompt": "x"}, **{"content-encoding": encoding}
    )
    message = document["error"]["message"]
    assert status == 400
    assert "gzip, deflate" in message
    assert "install" not in message
    assert len(message) < 250


@pytest.mark.parametrize("stage", [Setup(http={"max_requests_per_key": 2})], indirect=True)
async def test_a_key_has_so_many_requests_under_way_and_no_more(stage: Any) -> None:
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {KEY}"}) as session:
        running = [asyncio.ensure_future(session.post(stage.url + CHAT, json=stage.chat())) for _ in range(2)]
        submits = await stage.backstage.submitted(2)
        status, document, headers = await stage.post(CHAT, stage.chat())
        assert (status, document["error"]["type"]) == (429, "concurrency")
        assert "key one has 2 requests under way here" in document["error"]["message"]
        assert headers["retry-after"] == "1"
        counted, document, _ = await stage.post(f"{MESSAGES}/count_tokens", {"model": "demo", "messages": [TURN]})
        assert (counted, document["error"]["type"]) == (429, "rate_limit_error")
        for submit in submits:
            stage.backstage.admit(submit)
            stage.backstage.speak(submit, [300])
        assert [(await each).status for each in running] == [200, 200]
    stage.says("word")
    assert (await stage.post(CHAT, stage.chat()))[0] == 200
    assert not stage.gateway.api._serving._num_under_way


async def test_of_a_body_that_was_read_nothing_is_kept_while_its_answer_is_waited_for(stage: Any) -> None:
    num_tokens = 471

    def is_prompt(found: list[Any]) -> bool:
        return len(found) == num_tokens and all(type(each) is int and each == 7 for each in found)

    body = {"model": "demo", "prompt": [7] * num_tokens, "max_tokens": 1}
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {KEY}"}) as session:
        running = asyncio.ensure_future(session.post(stage.url + COMPLETIONS, data=msgspec.json.encode(body)))
        del body
        (submit,) = await stage.backstage.submitted(1)
        gc.collect()
        living = gc.get_objects()
        assert not [each for each in living if type(each) is list and is_prompt(each)]
        assert all(each._read_bytes is None for each in living if type(each) is web.Request)
        stage.backstage.admit(submit)
        stage.backstage.speak(submit, [300])
        assert (await running).status == 200


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/console", "/nowhere"])
async def test_pages_from_elsewhere_are_let_in_nowhere(stage: Any, path: str) -> None:
    asked = {"origin": "https://elsewhere", "access-control-request-method": "POST"}
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {KEY}", **asked}) as session:
        for method in ("OPTIONS", "GET", "POST"):
            async with session.request(method, stage.url + path, data=b"{}") as answer:
                assert not [name for name in answer.headers if name.lower().startswith("access-control")]
                assert method != "OPTIONS" or answer.status in (404, 405)
                assert answer.headers["server"] == "fairlead"


async def test_another_version_of_http_is_refused_in_one_that_is_spoken(stage: Any) -> None:
    bare = stage.connect()
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(bare, b"GET /healthz HTTP/2.0\r\nhost: x\r\nconnection: close\r\n\r\n")
    answer = await loop.sock_recv(bare, 2**16)
    assert answer.startswith(b"HTTP/1.1 505 ")
    assert b'"code":"http_version"' in answer
    bare.close()
