"""Anthropic's official client, unmodified, against a listening gateway."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from engine.config import read_eos_ids
from engine.grammar import lark
from engine.grammar.compiler import Compiler
from engine.grammar.hermes import call_text
from policies.commands import FinishReason
from services.gateway.grammars import Grammars
from services.gateway.trials import Trial, Verdict, judge
from services.wire import Admitted, InvalidRequest, Refused, RequestEnded, Submit

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
TEXT = "def parse(line): return line.split('\N{SNOWMAN} größer \N{GRINNING FACE}')"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {"name": "weather", "description": "Now.", "input_schema": CITY}
NOW: Any = {"name": "now", "input_schema": {"type": "object"}, "type": "custom"}
FUNCTIONS = [lark.Function("weather", CITY), lark.Function("now", {"type": "object"})]
CALLS = f"{call_text('weather', {'city': 'Paris'})}\n{call_text('now', {})}"


def wire_tokens(submit: Submit) -> list[int]:
    return list(memoryview(submit.prompt).cast("i"))


@pytest.fixture
async def client(stage: Any) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(api_key="fl-test-key", base_url=stage.url, max_retries=0, timeout=10) as made:
        yield made


@pytest.fixture
def tried_here(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grammars are tried without the process, which takes a while to start and has tests of its own."""
    compiler = Compiler(checkpoint, 4096, read_eos_ids(checkpoint))

    async def judged(self: Grammars, trial: Trial) -> Verdict:
        return judge(compiler, trial)

    monkeypatch.setattr(Grammars, "_ask", judged)


async def test_a_message_has_text_usage_and_the_reason_why_it_ended(stage: Any, client: Any) -> None:
    tokens = stage.says(TEXT, FinishReason.STOP)
    answer = await client.messages.create(model="demo", messages=MESSAGES, max_tokens=100)
    [submit] = stage.backstage.all_of(Submit)
    assert answer.id.startswith("msg_")
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "demo")
    assert [(block.type, block.text) for block in answer.content] == [("text", TEXT)]
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert answer.usage.input_tokens == len(wire_tokens(submit))
    assert answer.usage.output_tokens == len(tokens)
    assert answer.usage.cache_read_input_tokens == 0
    assert answer.usage.service_tier == "all"
    assert answer._request_id == answer.id
    assert (submit.max_output_tokens, submit.declared) == (100, True)


async def test_a_streamed_message_is_the_same_message_in_events(stage: Any, client: Any) -> None:
    tokens = stage.says(TEXT)
    async with client.messages.stream(model="demo", messages=MESSAGES, max_tokens=100) as stream:
        events = [event async for event in stream]
        answer = await stream.get_final_message()
    assert "".join(event.text for event in events if event.type == "text") == TEXT
    assert [(block.type, block.text) for block in answer.content] == [("text", TEXT)]
    assert (answer.stop_reason, answer.stop_sequence) == ("max_tokens", None)
    assert answer.usage.output_tokens == len(tokens)
    assert answer.usage.input_tokens == len(wire_tokens(stage.backstage.all_of(Submit)[0]))
    assert answer.usage.service_tier == "all"


async def test_the_events_of_a_stream_come_in_the_order_that_is_promised(stage: Any) -> None:
    stage.says("one two")
    body = {"model": "demo", "messages": MESSAGES, "max_tokens": 9, "stream": True}
    sent = await stage.stream("/v1/messages", body)
    names = [name for name, _ in sent]
    assert names[:3] == ["message_start", "ping", "content_block_start"]
    assert set(names[3:-3]) == {"content_block_delta"}
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert all(document["type"] == name for name, document in sent)
    assert all(document.get("index", 0) == 0 for _, document in sent)
    assert sent[0][1]["message"]["content"] == []
    assert sent[0][1]["message"]["stop_reason"] is None


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_part_of_a_prompt_that_was_cached_is_counted_apart(stage: Any, client: Any, streamed: bool) -> None:
    def script(submit: Submit) -> None:
        stage.backstage.admit(submit)
        stage.backstage.frame([(submit.request, 40, 0)], [(submit.request, 3)])
        stage.backstage.frame([(submit.request, 41, 2)])

    stage.backstage.script = script
    if streamed:
        async with client.messages.stream(model="demo", messages=MESSAGES, max_tokens=2) as stream:
            answer = await stream.get_final_message()
    else:
        answer = await client.messages.create(model="demo", messages=MESSAGES, max_tokens=2)
    [submit] = stage.backstage.all_of(Submit)
    assert answer.usage.cache_read_input_tokens == 3
    assert answer.usage.input_tokens == len(wire_tokens(submit)) - 3


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_stop_sequence_is_named_and_not_shown(stage: Any, client: Any, streamed: bool) -> None:
    stage.says("one two STOPPED three")
    options: Any = {"model": "demo", "messages": MESSAGES, "max_tokens": 50, "stop_sequences": ["never", "STOPPED"]}
    if streamed:
        async with client.messages.stream(**options) as stream:
            answer = await stream.get_final_message()
    else:
        answer = await client.messages.create(**options)
    assert answer.content[0].text == "one two "
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "STOPPED")


@pytest.mark.usefixtures("tried_here")
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("said", ["", "Let me look."])
async def test_calls_are_content_blocks_after_what_was_said(stage: Any, client: Any, said: str, streamed: bool) -> None:
    stage.says(f"{said}\n{CALLS}" if said else CALLS, FinishReason.STOP)
    options: Any = {"model": "demo", "messages": MESSAGES, "max_tokens": 200, "tools": [WEATHER, NOW]}
    if streamed:
        async with client.messages.stream(**options) as stream:
            answer = await stream.get_final_message()
    else:
        answer = await client.messages.create(**options)
    texts = [block.text for block in answer.content if block.type == "text"]
    calls = [block for block in answer.content if block.type == "tool_use"]
    assert texts == ([said] if said else [])
    assert [(call.name, call.input) for call in calls] == [("weather", {"city": "Paris"}), ("now", {})]
    assert len({call.id for call in calls if call.id.startswith("toolu_")}) == 2
    assert answer.stop_reason == "tool_use"


@pytest.mark.usefixtures("tried_here")
async def test_each_block_of_a_stream_is_closed_before_the_next_one_begins(stage: Any) -> None:
    stage.says(f"Let me look.\n{CALLS}", FinishReason.STOP)
    body = {"model": "demo", "messages": MESSAGES, "max_tokens": 200, "stream": True, "tools": [WEATHER, NOW]}
    sent = await stage.stream("/v1/messages", body)
    blocks = [
        (name.removeprefix("content_block_"), document["index"]) for name, document in sent if "index" in document
    ]
    order = [each for number, each in enumerate(blocks) if each not in blocks[:number]]
    assert order == [(name, index) for index in range(3) for name in ("start", "delta", "stop")]
    starts = [document["content_block"] for name, document in sent if name == "content_block_start"]
    assert [block["type"] for block in starts] == ["text", "tool_use", "tool_use"]
    parts = [document["delta"] for _, document in sent if document.get("index") == 1 and "delta" in document]
    assert {part["type"] for part in parts} == {"input_json_delta"}
    assert json.loads("".join(part["partial_json"] for part in parts)) == {"city": "Paris"}


@pytest.mark.usefixtures("tried_here")
async def test_a_call_that_was_cut_off_is_not_given_as_one_to_be_made(stage: Any, client: Any) -> None:
    stage.says(f"{call_text('now', {})}\n{call_text('weather', {'city': 'Paris'})}"[:-30])
    answer = await client.messages.create(model="demo", messages=MESSAGES, max_tokens=50, tools=[WEATHER, NOW])
    assert [block.name for block in answer.content] == ["now"]
    assert answer.stop_reason == "max_tokens"


@pytest.mark.usefixtures("tried_here")
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"tools": [WEATHER, NOW]}, lark.text_or_calls(FUNCTIONS, at_most_one=False)),
        (
            {"tools": [WEATHER, NOW], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            lark.text_or_calls(FUNCTIONS, at_most_one=True),
        ),
        ({"tools": [WEATHER, NOW], "tool_choice": {"type": "any"}}, lark.calls(FUNCTIONS, at_most_one=False)),
        (
            {"tools": [WEATHER, NOW], "tool_choice": {"type": "tool", "name": "now"}},
            lark.calls(FUNCTIONS[1:], at_most_one=True),
        ),
        ({"tools": [WEATHER, NOW], "tool_choice": {"type": "none"}}, ""),
        ({"output_config": {"format": {"type": "json_schema", "schema": CITY}}}, lark.document(CITY)),
    ],
)
async def test_what_is_asked_for_becomes_a_grammar(
    stage: Any, client: Any, more: dict[str, Any], expected: str
) -> None:
    stage.says("x")
    await client.messages.create(model="demo", messages=MESSAGES, max_tokens=5, **more)
    [submit] = stage.backstage.all_of(Submit)
    assert submit.grammar == expected


async def test_parameters_reach_the_engine(stage: Any, client: Any) -> None:
    stage.says("x")
    await client.messages.create(
        model="demo",
        messages=MESSAGES,
        max_tokens=9,
        extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 4},
        metadata={"user_id": "u"},
        service_tier="standard_only",
        thinking={"type": "disabled"},
    )
    [submit] = stage.backstage.all_of(Submit)
    [sampling] = submit.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 4)
    assert (submit.tenant, submit.tier, submit.project, submit.key) == ("acme", "paid", "web", "one")
    assert (submit.service_tier, submit.max_output_tokens) == ("standard_only", 9)


async def test_tokens_are_counted_as_the_request_would_have_them(stage: Any, client: Any) -> None:
    stage.says("x")
    asked: Any = {"model": "demo", "messages": MESSAGES, "system": "Be brief."}
    counted = await client.messages.count_tokens(**asked)
    answer = await client.messages.create(**asked, max_tokens=5)
    assert counted.input_tokens == answer.usage.input_tokens
    assert len(stage.backstage.all_of(Submit)) == 1


@pytest.mark.parametrize("headers", [{"x-api-key": "fl-test-key"}, {"authorization": "Bearer fl-test-key"}])
async def test_either_header_of_a_key_will_do(stage: Any, headers: dict[str, str]) -> None:
    stage.says("x")
    body = {"model": "demo", "messages": MESSAGES, "max_tokens": 5}
    status, _, found = await stage.post("/v1/messages", body, **({"authorization": ""} | headers))
    assert status == 200
    assert found["request-id"].startswith("msg_")


async def test_an_unknown_key_is_an_authentication_error(stage: Any) -> None:
    async with anthropic.AsyncAnthropic(api_key="fl-wrong", base_url=stage.url, max_retries=0) as client:
        with pytest.raises(anthropic.AuthenticationError, match="not known") as caught:
            await client.messages.create(model="demo", messages=MESSAGES, max_tokens=5)
    assert caught.value.body["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    ("code", "error", "kind"),
    [
        ("rate_limit_exceeded", anthropic.RateLimitError, "rate_limit_error"),
        ("queue_full", anthropic.RateLimitError, "rate_limit_error"),
        ("queue_timeout", anthropic._exceptions.OverloadedError, "overloaded_error"),
        ("no_capacity", anthropic._exceptions.OverloadedError, "overloaded_error"),
        ("request_exceeds_limit", anthropic.BadRequestError, "invalid_request_error"),
    ],
)
async def test_a_refusal_is_the_clients_exception(stage: Any, client: Any, code: str, error: Any, kind: str) -> None:
    stage.backstage.script = lambda submit: stage.backstage.send(
        "admission", Refused(submit.request, code, "the sentence", 2.5)
    )
    for streamed in (False, True):
        with pytest.raises(error, match="the sentence") as caught:
            await client.messages.create(model="demo", messages=MESSAGES, max_tokens=5, stream=streamed)
    assert caught.value.body == {"type": "error", "error": {"type": kind, "message": "the sentence"}}
    assert caught.value.response.headers["retry-after-ms"] == "2500"


async def test_an_error_in_the_middle_of_a_stream_is_an_event_of_its_own(stage: Any, client: Any) -> None:
    def script(submit: Submit) -> None:
        stage.backstage.admit(submit)
        stage.backstage.frame([(submit.request, stage.tokenizer.encode("a")[0], 0)])

    stage.backstage.script = script
    stream = await client.messages.create(model="demo", messages=MESSAGES, max_tokens=5, stream=True)
    await anext(stream)
    [submit] = stage.backstage.all_of(Submit)
    stage.backstage.send("scheduler", RequestEnded(submit.request, "error", 1, "output_failed", "the engine died"))
    with pytest.raises(anthropic.APIStatusError, match="the engine died") as caught:
        async for _ in stream:
            pass
    assert caught.value.body["error"]["type"] == "api_error"


async def test_a_wrong_message_is_counted_and_answered_in_anthropics_form(stage: Any, client: Any) -> None:
    with pytest.raises(anthropic.NotFoundError, match='the model here is "demo"') as caught:
        await client.messages.create(model="claude", messages=MESSAGES, max_tokens=5)
    assert caught.value.body["error"]["type"] == "not_found_error"
    assert len(stage.backstage.all_of(InvalidRequest)) == 1


async def test_anthropics_headers_say_what_is_left(stage: Any, client: Any, states: Any) -> None:
    tokens = stage.tokenizer.encode("word", add_special_tokens=False)

    def script(submit: Submit) -> None:
        stage.backstage.send("admission", Admitted(submit.request, "all", 1, 1, 2, limits=states))
        stage.backstage.speak(submit, tokens)

    stage.backstage.script = script
    answer = await client.messages.with_raw_response.create(model="demo", messages=MESSAGES, max_tokens=5)
    assert answer.headers["anthropic-ratelimit-requests-remaining"] == "58"
    assert answer.headers["anthropic-ratelimit-tokens-limit"] == "60000"
    assert answer.headers["anthropic-ratelimit-tokens-reset"].endswith("Z")
    assert answer.headers["ratelimit"].startswith('"requests";r=58;t=')
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]
