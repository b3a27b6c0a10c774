"""Structured answers and tool calls, through the official client; an executor's grammar is played by a double."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from engine.config import read_eos_ids
from engine.grammar import lark
from engine.grammar.compiler import Compiler
from engine.grammar.hermes import call_text
from policies.commands import FinishReason
from services.gateway.grammars import Grammars
from services.gateway.trials import Trial, Verdict, judge
from services.wire import RequestEnded, Submit

MESSAGES: Any = [{"role": "user", "content": "How warm is it in Paris?"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "description": "Now.", "parameters": CITY}}
NOW: Any = {"type": "function", "function": {"name": "now", "strict": True}}
FUNCTIONS = [
    lark.Function("weather", CITY),
    lark.Function("now", {"type": "object", "properties": {}, "additionalProperties": False}),
]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": CITY}}
SAID = f"Let me look.\n{call_text('weather', {'city': 'Paris'})}\n{call_text('now', {})}"


@pytest.fixture(autouse=True)
def tried_here(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the process, which takes a while to start and has tests of its own."""
    compiler = Compiler(checkpoint, 4096, read_eos_ids(checkpoint))

    async def judged(self: Grammars, trial: Trial) -> Verdict:
        return judge(compiler, trial)

    monkeypatch.setattr(Grammars, "_ask", judged)


async def grammar(stage: Any, **more: Any) -> str:
    stage.says("x")
    await stage.client().chat.completions.create(model="demo", messages=MESSAGES, **more)
    return str(stage.backstage.all_of(Submit)[-1].grammar)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, ""),
        ({"response_format": {"type": "text"}}, ""),
        ({"response_format": {"type": "json_object"}}, lark.document({"type": "object"})),
        ({"response_format": SCHEMA}, lark.document(CITY)),
        ({"tools": [WEATHER, NOW]}, lark.text_or_calls(FUNCTIONS, at_most_one=False)),
        (
            {"tools": [WEATHER, NOW], "tool_choice": "auto", "parallel_tool_calls": False},
            lark.text_or_calls(FUNCTIONS, at_most_one=True),
        ),
        ({"tools": [WEATHER, NOW], "tool_choice": "none"}, ""),
        ({"tools": [WEATHER, NOW], "tool_choice": "required"}, lark.calls(FUNCTIONS, at_most_one=False)),
        (
            {"tools": [WEATHER, NOW], "tool_choice": {"type": "function", "function": {"name": "now"}}},
            lark.calls(FUNCTIONS[1:], at_most_one=True),
        ),
        (
            {"tools": [WEATHER, NOW], "response_format": SCHEMA},
            lark.document_or_calls(CITY, FUNCTIONS, at_most_one=False),
        ),
    ],
)
async def test_what_is_asked_for_becomes_a_grammar(stage: Any, more: dict[str, Any], expected: str) -> None:
    assert await grammar(stage, **more) == expected


@pytest.mark.parametrize(
    ("more", "param", "reason"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strnig"}}}},
            "response_format.json_schema.schema",
            "Invalid type: strnig",
        ),
        (
            {"tools": [WEATHER, {"type": "function", "function": {"name": "x", "parameters": {"uniqueItems": True}}}]},
            "tools[1].function.parameters",
            "uniqueItems",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"title": "x" * 2**17}},
                }
            },
            "response_format",
            "at most 131072 are allowed",
        ),
    ],
)
async def test_a_schema_that_cannot_be_followed_is_refused(
    stage: Any, more: dict[str, Any], param: str, reason: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await stage.client().chat.completions.create(model="demo", messages=MESSAGES, **more)
    assert (caught.value.code, caught.value.param) == ("invalid_value", param)
    assert reason in caught.value.message
    assert "\n" not in caught.value.message
    assert stage.backstage.all_of(Submit) == []


async def test_calls_are_in_the_message_and_named_as_the_reason(stage: Any) -> None:
    stage.says(SAID, FinishReason.STOP)
    answer = await stage.client().chat.completions.create(model="demo", messages=MESSAGES, tools=[WEATHER, NOW])
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    called = [
        (call.type, call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls
    ]
    assert called == [("function", "weather", {"city": "Paris"}), ("function", "now", {})]
    assert len({call.id for call in choice.message.tool_calls}) == 2


async def test_without_a_call_the_answer_is_as_ever(stage: Any) -> None:
    stage.says("It is warm.", FinishReason.STOP)
    answer = await stage.client().chat.completions.create(model="demo", messages=MESSAGES, tools=[WEATHER])
    [choice] = answer.choices
    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == ("stop", "It is warm.", None)


async def test_an_answer_of_calls_alone_says_nothing(stage: Any) -> None:
    stage.says(call_text("now", {}), FinishReason.STOP)
    answer = await stage.client().chat.completions.create(model="demo", messages=MESSAGES, tools=[NOW])
    assert answer.choices[0].message.content is None


async def test_streamed_calls_come_as_deltas(stage: Any) -> None:
    stage.says(SAID, FinishReason.STOP)
    said, reason, calls = "", None, list[dict[str, Any]]()
    stream = await stage.client().chat.completions.create(
        model="demo", messages=MESSAGES, tools=[WEATHER, NOW], stream=True
    )
    async for chunk in stream:
        [choice] = chunk.choices
        said += choice.delta.content or ""
        reason = choice.finish_reason or reason
        for call in choice.delta.tool_calls or ():
            if call.id is not None:
                assert call.index == len(calls)
                assert call.type == "function"
                calls.append({"id": call.id, "name": call.function.name, "arguments": ""})
            calls[call.index]["arguments"] += call.function.arguments
    assert (said, reason) == ("Let me look.", "tool_calls")
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [
        ("weather", {"city": "Paris"}),
        ("now", {}),
    ]
    assert len({call["id"] for call in calls}) == 2


async def test_the_clients_own_stream_helper_understands_the_deltas(stage: Any) -> None:
    stage.says(SAID, FinishReason.STOP)
    tools = [{**WEATHER, "function": {**WEATHER["function"], "strict": True}}]
    async with stage.client().chat.completions.stream(model="demo", messages=MESSAGES, tools=tools) as stream:
        answer = await stream.get_final_completion()
    assert [call.function.name for call in answer.choices[0].message.tool_calls] == ["weather", "now"]
    assert answer.choices[0].message.tool_calls[0].function.parsed_arguments == {"city": "Paris"}


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_call_cut_off_by_the_limit_is_no_finished_call(stage: Any, streamed: bool) -> None:
    stage.says(call_text("weather", {"city": "Paris"})[:-25], FinishReason.LENGTH)
    answer = await stage.client().chat.completions.create(
        model="demo", messages=MESSAGES, tools=[WEATHER], stream=streamed
    )
    reasons = [c.choices[0].finish_reason async for c in answer] if streamed else [answer.choices[0].finish_reason]
    assert reasons[-1] == "length"


@pytest.mark.parametrize("streamed", [False, True])
async def test_log_probabilities_are_of_every_token_of_a_call(stage: Any, streamed: bool) -> None:
    tokens = stage.says(SAID, FinishReason.LENGTH)
    answer = await stage.client().chat.completions.create(
        model="demo", messages=MESSAGES, tools=[WEATHER, NOW], logprobs=True, stream=streamed
    )
    choices = [chunk.choices[0] async for chunk in answer] if streamed else answer.choices
    entries = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    assert len(entries) == len(tokens)
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == SAID
    said = [(choice.delta if streamed else choice.message).tool_calls or [] for choice in choices]
    assert [call.function.name for calls in said for call in calls if call.id] == ["weather", "now"]


async def test_choices_each_have_their_calls(stage: Any) -> None:
    stage.says(call_text("now", {}), FinishReason.STOP)
    answer = await stage.client().chat.completions.create(model="demo", messages=MESSAGES, tools=[NOW], n=2)
    ids = {call.id for choice in answer.choices for call in choice.message.tool_calls}
    assert len(ids) == 2


async def test_a_conversation_with_calls_goes_on(stage: Any) -> None:
    stage.says(call_text("now", {}), FinishReason.STOP)
    client = stage.client()
    first = await client.chat.completions.create(model="demo", messages=MESSAGES, tools=[NOW])
    [call] = first.choices[0].message.tool_calls
    turns = [*MESSAGES, first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "noon"}]
    stage.says("It is noon.", FinishReason.STOP)
    second = await client.chat.completions.create(model="demo", messages=turns, tools=[NOW])
    assert second.choices[0].message.content == "It is noon."
    prompt = stage.tokenizer.decode(list(memoryview(stage.backstage.all_of(Submit)[-1].prompt).cast("i")))
    assert '"name": "now"' in prompt
    assert call_text("now", {}) in prompt
    assert "noon" in prompt


async def test_an_output_that_failed_is_a_500_with_its_reason(stage: Any) -> None:
    def script(submit: Submit) -> None:
        stage.backstage.admit(submit)
        ended = RequestEnded(submit.request, "error", 0, "output_failed", "the output cannot keep to its grammar: why")
        stage.backstage.send("scheduler", ended)

    stage.backstage.script = script
    with pytest.raises(openai.InternalServerError) as caught:
        await stage.client().chat.completions.create(model="demo", messages=MESSAGES, response_format=SCHEMA)
    assert (caught.value.status_code, caught.value.code) == (500, "output_failed")
    assert "cannot keep to its grammar" in caught.value.message
