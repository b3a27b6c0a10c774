"""What admission said is on every answer of an inference endpoint, whatever became of the request."""

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from policies.commands import FinishReason
from services.gateway import backend as backend_module
from services.wire import Admitted, InvalidRequest, Queued, Refused, RequestEnded, Submit

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
BODIES = {
    CHAT: {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]},
    COMPLETIONS: {"model": "demo", "prompt": "x"},
}
OPENAI = {
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-remaining-requests": "58",
    "x-ratelimit-limit-tokens": "60000",
    "x-ratelimit-remaining-tokens": "58210",
    "RateLimit-Policy": '"requests";q=60;w=60, "tokens";q=60000;w=60',
}


def said(headers: Any, expected: dict[str, str]) -> dict[str, str]:
    return {name: headers[name] for name in expected if name in headers}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  the gateway signals its state to nobody
            await asyncio.sleep(0)


@pytest.fixture
def limited(stage: Any, states: Any) -> Any:
    """A stage where every request is admitted at once, under limits, and answered in one word."""
    tokens = stage.tokenizer.encode("word", add_special_tokens=False)

    def script(submit: Submit) -> None:
        stage.backstage.send("admission", Admitted(submit.request, "all", 1, 1, 12_000_001, limits=states))
        stage.backstage.speak(submit, tokens, FinishReason.LENGTH)

    stage.backstage.script = script
    return stage


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_an_answer_and_a_stream_say_what_is_left_their_class_and_their_place(
    limited: Any, path: str, streamed: bool
) -> None:
    async with (
        aiohttp.ClientSession(headers={"authorization": "Bearer fl-test-key"}) as session,
        session.post(limited.url + path, json=BODIES[path] | {"stream": streamed}) as answer,
    ):
        assert answer.status == 200
        assert said(answer.headers, OPENAI) == OPENAI
        assert answer.headers["x-fairlead-class"] == "all"
        assert (answer.headers["x-queue-position"], answer.headers["x-queue-wait-ms"]) == ("0", "12")
        assert "retry-after" not in answer.headers


async def test_the_class_that_serves_a_request_is_its_service_tier(limited: Any) -> None:
    client = limited.client()
    messages: Any = BODIES[CHAT]["messages"]
    answer = await client.chat.completions.create(model="demo", messages=messages, service_tier="flex")
    assert answer.service_tier == "all"
    stream = await client.chat.completions.create(
        model="demo", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert (chunks[0].service_tier, chunks[-1].service_tier) == ("all", "all")
    [first, _] = limited.backstage.all_of(Submit)
    assert first.service_tier == "flex"


async def test_a_request_that_waited_says_where_it_stood_and_how_long_it_took(stage: Any, states: Any) -> None:
    tokens = stage.tokenizer.encode("word", add_special_tokens=False)

    def script(submit: Submit) -> None:
        stage.backstage.send("admission", Queued(submit.request, 3, 9.0, states))
        stage.backstage.send("admission", Admitted(submit.request, "all", 1, 5, 2_000_000_005))
        stage.backstage.speak(submit, tokens, FinishReason.LENGTH)

    stage.backstage.script = script
    _, _, headers = await stage.post(CHAT, BODIES[CHAT])
    assert said(headers, OPENAI) == OPENAI
    assert (headers["x-queue-position"], headers["x-queue-wait-ms"]) == ("3", "2000")


@pytest.mark.parametrize(
    ("refusal", "answered", "expected"),
    [
        (
            {"code": "rate_limit_exceeded", "retry_after_s": 0.0123, "dimension": "total_tokens"},
            (429, "tokens"),
            {"retry-after": "1", "retry-after-ms": "13"},
        ),
        (
            {"code": "queue_full", "retry_after_s": 4.5, "position": 50},
            (429, "requests"),
            {"retry-after": "5", "retry-after-ms": "4500", "x-queue-position": "50", "x-queue-wait-ms": "4500"},
        ),
        (
            {"code": "queue_timeout", "retry_after_s": 2.0, "position": 7},
            (503, "server_error"),
            {"retry-after": "2", "x-queue-position": "7"},
        ),
        ({"code": "request_exceeds_limit", "dimension": "total_tokens"}, (400, "invalid_request_error"), {}),
    ],
)
async def test_a_refusal_says_its_type_its_wait_and_what_is_left(
    stage: Any, states: Any, refusal: dict[str, Any], answered: tuple[int, str], expected: dict[str, str]
) -> None:
    stage.backstage.script = lambda submit: stage.backstage.send(
        "admission", Refused(submit.request, message="the sentence", limits=states, **refusal)
    )
    for streamed in (False, True):
        status, document, headers = await stage.post(CHAT, BODIES[CHAT] | {"stream": streamed})
        assert (status, document["error"]["type"]) == answered
        assert document["error"]["code"] == refusal["code"]
        assert said(headers, OPENAI | expected) == OPENAI | expected
        assert ("retry-after" in headers) == ("retry-after" in expected)
    assert stage.backstage.all_of(InvalidRequest) == []


async def test_an_error_after_the_release_still_says_what_is_left(stage: Any, states: Any) -> None:
    def script(submit: Submit) -> None:
        stage.backstage.send("admission", Admitted(submit.request, "all", 1, 1, 2, limits=states))

    stage.backstage.script = script
    answer = asyncio.create_task(stage.post(CHAT, BODIES[CHAT]))
    [submit] = await stage.backstage.submitted()
    await until(lambda: not stage.gateway._backend._unheard)
    stage.backstage.send("scheduler", RequestEnded(submit.request, "error", 0, "output_failed", "the engine died"))
    status, _, headers = await answer
    assert status == 500
    assert said(headers, OPENAI) == OPENAI


async def test_an_embedding_says_what_is_left(stage: Any, states: Any) -> None:
    def script(submit: Submit) -> None:
        stage.backstage.send("admission", Admitted(submit.request, "all", 1, 1, 2, limits=states))
        stage.backstage.frame([(submit.request, 1, int(FinishReason.LENGTH))], vectors={submit.request: b"\0" * 8})

    stage.backstage.script = script
    status, _, headers = await stage.post(EMBEDDINGS, {"model": "demo", "input": "x"})
    assert status == 200
    assert said(headers, OPENAI) == OPENAI


async def test_tokens_that_overtake_admissions_word_wait_for_it(stage: Any, states: Any) -> None:
    tokens = stage.tokenizer.encode("word", add_special_tokens=False)
    stage.backstage.script = lambda submit: stage.backstage.speak(submit, tokens, FinishReason.LENGTH)
    answer = asyncio.create_task(stage.post(CHAT, BODIES[CHAT]))
    [submit] = await stage.backstage.submitted()
    await until(lambda: not stage.gateway._backend.running)
    stage.backstage.send("admission", Admitted(submit.request, "all", 1, 1, 2, limits=states))
    status, _, headers = await answer
    assert status == 200
    assert said(headers, OPENAI) == OPENAI
    assert stage.gateway._backend._unheard == {}


async def test_without_limits_no_header_speaks_of_any(stage: Any) -> None:
    stage.says("word")
    _, _, headers = await stage.post(CHAT, BODIES[CHAT])
    assert [name for name in headers if "ratelimit" in name.lower()] == []


@pytest.mark.parametrize("body", [b"{", {"model": "gpt-9", "prompt": "x"}, {"model": "demo", "prompt": [1] * 900}])
async def test_a_wrong_request_is_counted_and_says_what_is_left(stage: Any, states: Any, body: Any) -> None:
    stage.backstage.count = lambda wrong: stage.backstage.send(
        "admission", Admitted(wrong.request, "", 0, 0, 0, limits=states)
    )
    status, _, headers = await stage.post(COMPLETIONS, body)
    assert status in {400, 404}
    assert said(headers, OPENAI) == OPENAI
    assert "x-queue-position" not in headers
    [wrong] = stage.backstage.all_of(InvalidRequest)
    assert (wrong.tenant, wrong.project, wrong.key, wrong.tier) == ("acme", "web", "one", "paid")
    assert stage.gateway._backend._counting == {}


async def test_a_wrong_request_of_a_caller_who_is_over_the_limit_gets_the_429(stage: Any, states: Any) -> None:
    stage.backstage.count = lambda wrong: stage.backstage.send(
        "admission", Refused(wrong.request, "rate_limit_exceeded", "too many", 3.5, "requests", limits=states)
    )
    status, document, headers = await stage.post(CHAT, b"{")
    assert (status, document["error"]["code"], headers["retry-after-ms"]) == (429, "rate_limit_exceeded", "3500")
    assert said(headers, OPENAI) == OPENAI


async def test_a_wrong_request_is_answered_even_if_admission_never_counts_it(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "COUNTED_S", 0.01)
    stage.backstage.count = lambda wrong: None
    assert (await stage.post(CHAT, b"{"))[0] == 400
    await stage.backstage.lose("admission")
    assert (await stage.post(CHAT, b"{"))[0] == 400


@pytest.mark.parametrize("authorization", ["", "Bearer nope"])
async def test_who_has_no_key_is_counted_for_nobody(stage: Any, authorization: str) -> None:
    assert (await stage.post(CHAT, b"{", authorization=authorization))[0] == 401
    assert stage.backstage.all_of(InvalidRequest) == []


async def test_what_is_no_fault_of_the_caller_is_not_counted(stage: Any) -> None:
    await stage.backstage.lose("scheduler")
    assert (await stage.post(CHAT, BODIES[CHAT]))[0] == 503
    assert stage.backstage.all_of(InvalidRequest) == []
