"""Penalties, stop tokens and log-probabilities through the whole house and the official client."""

import asyncio
import math
from typing import Any

import openai
import pytest
from deployed import House

MESSAGES: Any = [{"role": "user", "content": "Is the harbour open?"}]
ASKED: Any = {
    "model": "demo",
    "messages": MESSAGES,
    "seed": 5,
    "max_tokens": 40,
    "presence_penalty": 0.8,
    "frequency_penalty": 0.6,
    "logprobs": True,
    "top_logprobs": 3,
    "extra_body": {"ignore_eos": True, "repetition_penalty": 1.3, "min_p": 0.01, "top_k": 200},
}


def numbers(content: Any) -> list[tuple[tuple[int, ...], float]]:
    return [(tuple(each.bytes), each.logprob) for entry in content for each in (entry, *entry.top_logprobs)]


async def whole(client: openai.AsyncOpenAI) -> tuple[str, Any]:
    answer = await client.chat.completions.create(**ASKED)
    choice = answer.choices[0]
    assert len(choice.logprobs.content) == answer.usage.completion_tokens == 40
    assert all(math.isfinite(entry.logprob) and entry.logprob <= 0 for entry in choice.logprobs.content)
    return choice.message.content, numbers(choice.logprobs.content)


async def streamed(client: openai.AsyncOpenAI) -> tuple[str, Any]:
    text, content = "", []
    async for chunk in await client.chat.completions.create(**ASKED, stream=True):
        text += chunk.choices[0].delta.content or ""
        if chunk.choices[0].logprobs:
            content += chunk.choices[0].logprobs.content
    return text, numbers(content)


async def stopped(client: openai.AsyncOpenAI) -> Any:
    answer = await client.completions.create(
        model="demo",
        prompt="The harbour",
        max_tokens=30,
        logit_bias={"300": 100},
        logprobs=1,
        extra_body={"stop_token_ids": [300], "min_tokens": 5},
    )
    return answer.choices[0], answer.usage


@pytest.mark.slow
async def test_an_answer_with_penalties_is_the_same_alone_and_in_company(shared: House) -> None:
    client = openai.AsyncOpenAI(base_url=f"{shared.url}/v1", api_key=shared.key, max_retries=0, timeout=120)
    text, content = await whole(client)
    *others, (choice, usage) = await asyncio.gather(
        *(whole(client) for _ in range(6)), *(streamed(client) for _ in range(6)), stopped(client)
    )
    for other_text, other_content in others:
        assert other_text == text
        assert [data for data, _ in other_content] == [data for data, _ in content]
        assert [value for _, value in other_content] == pytest.approx([value for _, value in content], abs=1e-4)
    assert (choice.finish_reason, usage.completion_tokens) == ("stop", 6)
    assert len(choice.logprobs.tokens) == 5  # the stop token has neither text nor numbers
    await client.close()
