"""Structured answers of a model that knows nothing, through the whole house and the official client."""

import asyncio
import json
from typing import Any

import jsonschema
import openai
import pytest
from deployed import House

MESSAGES: Any = [{"role": "user", "content": "Who goes aboard?"}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "role": {"enum": ["master", "mate", "cook"]},
        "born": {"type": "string", "format": "date"},
    },
    "required": ["name", "age", "role"],
    "additionalProperties": False,
}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
TOOLS: Any = [{"type": "function", "function": {"name": "hire", "description": "Hire somebody.", "parameters": PERSON}}]
MAX_TOKENS = 400


async def document(client: openai.AsyncOpenAI, seed: int) -> str:
    answer = await client.chat.completions.create(
        model="demo", messages=MESSAGES, response_format=FORM, seed=seed, max_tokens=MAX_TOKENS
    )
    assert answer.choices[0].finish_reason == "stop"
    return answer.choices[0].message.content or ""


async def streamed_document(client: openai.AsyncOpenAI, seed: int) -> str:
    stream = await client.chat.completions.create(
        model="demo", messages=MESSAGES, response_format=FORM, seed=seed, max_tokens=MAX_TOKENS, stream=True
    )
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def calls(client: openai.AsyncOpenAI, choice: Any, seed: int) -> Any:
    answer = await client.chat.completions.create(
        model="demo", messages=MESSAGES, tools=TOOLS, tool_choice=choice, seed=seed, max_tokens=MAX_TOKENS
    )
    return answer.choices[0]


async def text(client: openai.AsyncOpenAI) -> str:
    answer = await client.chat.completions.create(
        model="demo", messages=MESSAGES, seed=7, max_tokens=64, extra_body={"ignore_eos": True}
    )
    return answer.choices[0].message.content or ""


@pytest.mark.slow
async def test_answers_keep_to_their_schema_and_their_neighbours_notice_nothing(shared: House) -> None:
    client = openai.AsyncOpenAI(base_url=f"{shared.url}/v1", api_key=shared.key, max_retries=0, timeout=120)
    alone = await text(client)
    named = {"type": "function", "function": {"name": "hire"}}
    *documents, streamed, required, forced, beside = await asyncio.gather(
        *(document(client, seed) for seed in range(8)),
        streamed_document(client, 3),
        calls(client, "required", 1),
        calls(client, named, 2),
        text(client),
    )
    for written in documents:
        jsonschema.validate(json.loads(written), PERSON)
    assert len(set(documents)) > 1
    assert streamed == documents[3]
    assert beside == alone
    for choice in (required, forced):
        called = choice.message.tool_calls
        assert {call.function.name for call in called} == {"hire"}
        if choice.finish_reason == "tool_calls":
            for call in called:
                jsonschema.validate(json.loads(call.function.arguments), PERSON)
    assert forced.finish_reason == "tool_calls"
    assert len(forced.message.tool_calls) == 1

    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "person"}}}
    with pytest.raises(openai.BadRequestError, match="Invalid type: person"):
        await client.chat.completions.create(model="demo", messages=MESSAGES, response_format=wrong)
    await client.close()
