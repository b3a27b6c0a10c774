"""What the gateway answers to whoever does not use it as intended, and how requests end."""

import asyncio
import json
from typing import Any

import pytest

from policies.commands import FinishReason
from services.wire import (
    Admitted,
    Cancel,
    PolicyCommit,
    PolicyPrepare,
    PolicyPrepared,
    PolicyStatus,
    RequestEnded,
    Stopped,
    Submit,
)
from services.wire_parts import Levels
from tests.services.gateway.conftest import ADMIN_KEY, KEY

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@pytest.mark.parametrize(
    ("path", "body", "refusal", "says"),
    [
        (CHAT, b"{", (400, "invalid_json"), "not valid JSON"),
        (CHAT, b"x" * (10 * 2**20), (413, "body_too_large"), "4194304 bytes"),
        (CHAT, {"model": "gpt-9", "messages": [{"role": "user", "content": "x"}]}, (404, "model_not_found"), '"demo"'),
        (
            CHAT,
            {"model": "demo", "messages": [{"role": "user", "content": "x"}], "n": 17},
            (400, "invalid_value"),
            "at most 16",
        ),
        (
            CHAT,
            {"model": "demo", "messages": [{"role": "user", "content": "x"}], "max_tokens": 512},
            (400, "context_length_exceeded"),
            "at most 512 tokens",
        ),
        (
            COMPLETIONS,
            {"model": "demo", "prompt": [1] * 9000},
            (400, "context_length_exceeded"),
            "at most 8192 tokens; prompt has 9000",
        ),
        (COMPLETIONS, {"model": "demo", "prompt": [4096]}, (400, "invalid_value"), "vocabulary of 4096"),
        (COMPLETIONS, {"model": "demo", "prompt": ["a"] * 65}, (400, "invalid_value"), "at most 64"),
        (COMPLETIONS, {"model": "demo", "prompt": ""}, (400, "invalid_value"), "empty"),
        (
            COMPLETIONS,
            {"model": "demo", "prompt": "x", "logprobs": 21},
            (400, "invalid_value"),
            "logprobs: 21 is out of bounds: it must be at least 0 and at most 20",
        ),
        (
            COMPLETIONS,
            {"model": "demo", "prompt": "x", "logit_bias": {"7": 1, "4096": 1}},
            (400, "invalid_value"),
            "logit_bias: 4096 is not a token id of this model; its vocabulary has 4096, from 0 to 4095",
        ),
        (
            CHAT,
            {"model": "demo", "messages": [{"role": "user", "content": "x"}], "stop_token_ids": [2, 5000]},
            (400, "invalid_value"),
            "stop_token_ids: 5000 is not a token id",
        ),
        (
            COMPLETIONS,
            {"model": "demo", "prompt": "x", "min_tokens": 17},
            (400, "invalid_value"),
            "min_tokens: 17 is more than the 16 tokens",
        ),
        (CHAT, {"model": "demo", "messages": [{"role": "user"}]}, (400, "missing_parameter"), "messages[0].content"),
        (CHAT, {"model": "demo", "messages": [{"role": "me", "content": "x"}]}, (400, "invalid_value"), "assistant"),
        ("/v1/audio/speech", {}, (404, "not_found"), "/v1/audio/speech"),
        ("/v1/models", {}, (405, "method_not_allowed"), "GET"),
    ],
)
async def test_a_wrong_request_is_answered_with_a_sentence_that_names_the_limit(
    stage: Any, path: str, body: Any, refusal: tuple[int, str], says: str
) -> None:
    status, document, headers = await stage.post(path, body)
    assert (status, document["error"]["code"]) == refusal
    assert says in document["error"]["message"]
    assert set(document["error"]) == {"message", "type", "param", "code"}
    assert headers["x-request-id"]
    assert stage.backstage.all_of(Submit) == []


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GET /healthz HTTP/1.1\r\nhost: x\r\nlong: " + b"x" * 40_000 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"SING /healthz HTTP/1.1\r\nhost: x\r\n\r\n", 400, "invalid_http"),
        (b"\x16\x03\x01\x02\x00" * 10, 400, "invalid_http"),
        (b"HEADERS content-encoding: gzip\r\ncontent-length: 4\r\n\r\n{  }", 400, "invalid_value"),
        (b"HEADERS content-length: 4\r\n\r\n{", 408, "body_too_slow"),
    ],
)
async def test_what_is_no_readable_request_is_refused_in_openais_shape_and_without_a_traceback(
    stage: Any, caplog: pytest.LogCaptureFixture, sent: bytes, status: int, code: str
) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer fl-test-key\r\n".encode()
    bare = stage.connect()
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(bare, sent.replace(b"HEADERS ", head))
    data = b""
    async with asyncio.timeout(10):
        # The connection stays for a while, so that a client that still sends can read this.
        while not data.endswith(b"}}"):
            data += await loop.sock_recv(bare, 2**16)
    bare.close()
    answered, body = data.split(b"\r\n\r\n", 1)
    assert int(answered.split()[1]) == status
    assert json.loads(body)["error"]["code"] == code
    assert "\n" not in json.loads(body)["error"]["message"]
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize(
    ("authorization", "says"),
    [
        ("", "no API key"),
        ("Basic x", "no API key"),
        ("Bearer nope", "not known"),
        ("Bearer fl-test-revoked", "not known"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_without_a_valid_key_nothing_is_served(stage: Any, path: str, authorization: str, says: str) -> None:
    status, document, headers = await stage.post(path, b"{", authorization=authorization)
    assert (status, document["error"]["code"]) == (401, "invalid_api_key")
    assert says in document["error"]["message"]
    assert headers["www-authenticate"] == "Bearer"


async def test_a_key_revoked_in_the_file_stops_working_and_a_broken_file_changes_nothing(stage: Any) -> None:
    keys = stage.gateway._keys
    path = stage.folder / "tenants.yaml"
    good = path.read_text()
    path.write_text("tenants: [")
    assert str(path) in keys.refresh()
    assert (await stage.get("/v1/models"))[0] == 200
    path.write_text(good.replace("project: web", "project: web, revoked: true"))
    assert keys.refresh() == ""
    assert (await stage.get("/v1/models"))[0] == 401


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_stop_string_over_several_tokens_ends_the_text_and_the_sequence(stage: Any, streamed: bool) -> None:
    tokens = stage.says("one two STOPPED three")
    spoken = [stage.tokenizer.decode(tokens[: index + 1]) for index in range(len(tokens))]
    counted = next(index + 1 for index, text in enumerate(spoken) if "STOPPED" in text)
    client = stage.client()
    answer = await client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "x"}],
        stop=["STOPPED"],
        stream=streamed,
        **({"stream_options": {"include_usage": True}} if streamed else {}),
    )
    if streamed:
        chunks = [chunk async for chunk in answer]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        reason, usage = chunks[-2].choices[0].finish_reason, chunks[-1].usage
    else:
        text, reason, usage = answer.choices[0].message.content, answer.choices[0].finish_reason, answer.usage
    assert (text, reason, usage.completion_tokens) == ("one two ", "stop", counted)
    [submit] = stage.backstage.all_of(Submit)
    await stage.backstage.until(lambda: stage.backstage.all_of(Stopped, "scheduler"))
    assert stage.backstage.all_of(Stopped) == [Stopped(submit.request, counted)]
    assert stage.backstage.all_of(Cancel) == []


@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_leaves_has_its_request_cancelled_at_both(stage: Any, begun: bool) -> None:
    bare = stage.connect()
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(bare, stage.raw_request(stage.chat(stream=True)))
    [submit] = await stage.backstage.submitted()
    stage.backstage.admit(submit)
    if begun:
        stage.backstage.frame([(submit.request, 70, 0)])
        assert await loop.sock_recv(bare, 100)
    bare.close()
    told = await stage.backstage.cancelled(submit.request)
    assert told == [("admission", "client_gone"), ("scheduler", "client_gone")]
    assert stage.gateway._backend.running == {}


async def test_a_slow_reader_is_cancelled_and_the_others_read_on(stage: Any) -> None:
    backstage = stage.backstage
    loop = asyncio.get_running_loop()
    slow, fast = stage.connect(receive_buffer=4096), stage.connect()
    for bare in (slow, fast):
        await loop.sock_sendall(bare, stage.raw_request(stage.chat(stream=True)))
    first, second = await backstage.submitted(2)
    token = stage.tokenizer.encode("a")[0]
    read = 0

    def cancels() -> list[Any]:
        return backstage.all_of(Cancel, "scheduler")

    while not cancels():
        backstage.frame([(first.request, token, 0), (second.request, token, 0)] * 200)
        async with asyncio.timeout(10):
            read += len(await loop.sock_recv(fast, 2**20))
    assert [(cancel.request, cancel.reason) for cancel in cancels()] == [(first.request, "slow_reader")]
    assert list(stage.gateway._backend.running) == [second.request]
    backstage.frame([(second.request, token, FinishReason.LENGTH)])
    tail = b""
    async with asyncio.timeout(10):
        while not tail.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            tail += await loop.sock_recv(fast, 2**20)
    slow.close()
    fast.close()


async def test_a_reader_that_catches_up_gets_all_of_the_text_in_order(stage: Any) -> None:
    loop = asyncio.get_running_loop()
    bare = stage.connect(receive_buffer=4096)
    await loop.sock_sendall(bare, stage.raw_request(stage.chat(stream=True)))
    [submit] = await stage.backstage.submitted()
    words = ["zero", "one", "two", "three", "four"]
    tokens = [stage.tokenizer.encode(word)[0] for word in words]
    [choice] = stage.gateway._backend._pump.choices.values()
    sent: list[int] = []
    # Until the gateway has to hold text back for this reader.
    while not (sent and not choice.direct and choice.held):
        sent += tokens * 20
        before = choice.num_tokens
        stage.backstage.frame([(submit.request, token, 0) for token in tokens * 20])
        async with asyncio.timeout(10):
            while choice.num_tokens == before:  # noqa: ASYNC110  a frame in flight signals nothing here
                await asyncio.sleep(0)
    stage.backstage.frame([(submit.request, tokens[0], int(FinishReason.LENGTH))])
    sent.append(tokens[0])
    data = b""
    async with asyncio.timeout(10):
        while not data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
            data += await loop.sock_recv(bare, 2**20)
    bare.close()
    events = [line for line in data.split(b"\n") if line.startswith(b'data: {"id"')]
    texts = [json.loads(event[6:])["choices"][0]["delta"].get("content", "") for event in events]
    assert "".join(texts) == stage.tokenizer.decode(sent)
    assert len(events) < len(sent)


async def test_http_1_0_gets_the_stream_without_chunked_coding(stage: Any) -> None:
    stage.says("hello")
    loop = asyncio.get_running_loop()
    bare = stage.connect()
    await loop.sock_sendall(bare, stage.raw_request(stage.chat(stream=True), version="1.0"))
    data = b""
    async with asyncio.timeout(10):
        while piece := await loop.sock_recv(bare, 2**16):
            data += piece
    bare.close()
    head, body = data.split(b"\r\n\r\n", 1)
    assert b"chunked" not in head.lower()
    assert body.startswith(b"data: {")
    assert body.endswith(b"data: [DONE]\n\n")


async def test_a_lost_scheduler_ends_what_ran_and_keeps_what_waits(stage: Any) -> None:
    both = [asyncio.create_task(stage.post(CHAT, stage.chat())) for _ in range(2)]
    running, waiting = await stage.backstage.submitted(2)
    stage.backstage.admit(running)
    await stage.backstage.until(lambda: True)
    async with asyncio.timeout(10):
        while not stage.gateway._backend.running[running.request].admitted:  # noqa: ASYNC110  nothing signals it
            await asyncio.sleep(0)
    await stage.backstage.lose("scheduler")
    async with asyncio.timeout(10):
        done, pending = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    status, document, headers = done.pop().result()
    assert (status, document["error"]["code"], headers["retry-after"]) == (502, "scheduler_lost", "1")
    assert list(stage.gateway._backend.running) == [waiting.request]
    assert (await stage.post(CHAT, stage.chat()))[0] == 503
    # Released to the scheduler that is gone: nobody else would end it.
    stage.backstage.admit(waiting)
    assert (await pending.pop())[1]["error"]["code"] == "scheduler_lost"


async def test_a_request_released_to_a_scheduler_that_was_replaced_meanwhile_ends(stage: Any) -> None:
    answer = asyncio.create_task(stage.post(CHAT, stage.chat()))
    [submit] = await stage.backstage.submitted()
    stage.backstage.send("admission", Admitted(submit.request, "all", 1, 1, 2, scheduler_epoch=5))
    async with asyncio.timeout(10):
        status, document, _ = await answer
    assert (status, document["error"]["code"]) == (502, "scheduler_lost")


async def test_a_lost_admission_ends_what_waits_and_lets_what_runs_go_on(stage: Any) -> None:
    both = [asyncio.create_task(stage.post(CHAT, stage.chat())) for _ in range(2)]
    running, _ = await stage.backstage.submitted(2)
    stage.backstage.frame([(running.request, 70, 0)])
    async with asyncio.timeout(10):
        while not stage.gateway._backend.running[running.request].answer.choices[0].num_tokens:  # noqa: ASYNC110
            await asyncio.sleep(0)
    await stage.backstage.lose("admission")
    async with asyncio.timeout(10):
        done, pending = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    status, document, headers = done.pop().result()
    assert (status, document["error"]["code"], headers["retry-after"]) == (503, "admission_lost", "1")
    assert (await stage.post(CHAT, stage.chat()))[1]["error"]["code"] == "admission_lost"
    stage.backstage.frame([(running.request, 70, int(FinishReason.LENGTH))])
    assert (await pending.pop())[0] == 200


async def test_an_error_of_the_engine_becomes_the_status_of_a_whole_answer(stage: Any) -> None:
    stage.backstage.script = lambda submit: stage.backstage.send(
        "scheduler", RequestEnded(submit.request, "error", 0, "output_failed", "the engine died")
    )
    status, document, _ = await stage.post(CHAT, stage.chat())
    assert (status, document["error"]["message"]) == (500, "the engine died")


async def test_one_refused_prompt_ends_the_others_of_its_request(stage: Any) -> None:
    answer = asyncio.create_task(stage.post(COMPLETIONS, {"model": "demo", "prompt": ["a", "b"]}))
    first, second = await stage.backstage.submitted(2)
    stage.backstage.send("scheduler", RequestEnded(first.request, "error", 0, "output_failed", "no"))
    assert (await answer)[0] == 500
    assert await stage.backstage.cancelled(second.request)


async def test_readiness_names_the_policy_the_last_save_and_what_is_missing(stage: Any) -> None:
    status, document, headers = await stage.get("/readyz", "")
    assert (status, document["ready"], document["policy"]["name"], document["policy"]["revision"]) == (
        200,
        True,
        "simple",
        1,
    )
    assert headers["x-fairlead-policy"] == "simple@1"
    stage.backstage.send("admission", PolicyStatus(1, "rejected", "policy:1:1: no"))
    policy = stage.gateway._backend.revisions
    async with asyncio.timeout(10):
        while policy.last_save is None:  # noqa: ASYNC110  nothing signals it
            await asyncio.sleep(0)
    for key in ("", KEY):  # sentences about the policy may name tenants and paths
        assert "admin key" in (await stage.get("/readyz", key))[1]["last_save"]["error"]
    assert (await stage.get("/readyz", ADMIN_KEY))[1]["last_save"]["error"] == "policy:1:1: no"
    await stage.backstage.lose("scheduler")
    status, document, _ = await stage.get("/readyz", "")
    assert status == 503
    assert "no stream to scheduler" in document["reasons"]
    assert (await stage.get("/healthz", ""))[0] == 200


async def test_what_cannot_be_kept_is_named_to_anybody_and_told_to_an_operator(stage: Any) -> None:
    backend = stage.gateway._backend
    assert (await stage.get("/readyz", ""))[1]["degraded"] == {}
    backend.troubles.begin("traffic", "/data/traffic cannot be written")
    backend.levels["admission"] = Levels(troubles=["state: /data/admission.sqlite cannot be written: the disk is full"])
    backend.levels["scheduler"] = Levels()
    for key in ("", KEY):
        status, document, _ = await stage.get("/readyz", key)
        assert (status, document["degraded"]) == (200, {"gateway": ["traffic"], "admission": ["state"]})
    whole = (await stage.get("/readyz", ADMIN_KEY))[1]["degraded"]
    assert whole["gateway"] == ["traffic: /data/traffic cannot be written"]
    assert "the disk is full" in whole["admission"][0]


async def test_a_revision_is_in_force_from_its_commit_and_a_bad_one_is_never_prepared(stage: Any) -> None:
    backstage = stage.backstage
    document = b"{version: 1, name: next, classes: [{name: a, ttft_s: 1, tbt_s: 1}], batching: {stages: [{decode: {}},"
    document += b" {prefill: {from: waiting}}]}}"
    backstage.send("admission", PolicyPrepare(2, b"version: 9"))
    backstage.send("admission", PolicyCommit(2))
    backstage.send("admission", PolicyPrepare(3, document))
    await backstage.until(lambda: len(backstage.all_of(PolicyPrepared)) == 2)
    bad, good = backstage.all_of(PolicyPrepared)
    assert (bad.revision, good.revision, good.error) == (2, 3, "")
    assert "version" in bad.error
    assert (await stage.get("/v1/fairlead/policy"))[1]["now"]["revision"] == 1
    backstage.send("admission", PolicyCommit(3))
    revisions = stage.gateway._backend.revisions
    async with asyncio.timeout(10):
        while revisions.label != "next@3":  # noqa: ASYNC110  nothing signals it
            await asyncio.sleep(0)
    status, seen, _ = await stage.get("/v1/fairlead/policy")
    assert status == 200
    assert [(each["revision"], each["changes"]) for each in seen["history"]] == [(1, []), (3, [])]
    _, seen, _ = await stage.get("/v1/fairlead/policy", ADMIN_KEY)
    assert seen["history"][1]["changes"]
    assert (await stage.get("/v1/fairlead/policy", ""))[0] == 401
