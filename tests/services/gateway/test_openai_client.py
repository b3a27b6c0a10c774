"""The official client, unmodified, against a listening gateway."""

from typing import Any

import openai
import pytest

from policies.commands import FinishReason
from services.wire import Refused, RequestEnded, Submit

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
TEXT = "def parse(line): return line.split('\N{SNOWMAN} größer \N{GRINNING FACE}')"


def wire_tokens(submit: Submit) -> list[int]:
    return list(memoryview(submit.prompt).cast("i"))


async def test_a_chat_completion_has_text_usage_and_finish_reason(stage: Any) -> None:
    tokens = stage.says(TEXT, FinishReason.STOP)
    answer = await stage.client().chat.completions.create(model="demo", messages=MESSAGES, max_tokens=100)
    [submit] = stage.backstage.all_of(Submit)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == len(tokens)
    assert answer.usage.prompt_tokens == len(wire_tokens(submit))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert submit.max_output_tokens == 100


async def test_a_chat_prompt_is_rendered_by_the_models_template(stage: Any) -> None:
    stage.says("x")
    await stage.client().chat.completions.create(model="demo", messages=MESSAGES)
    [submit] = stage.backstage.all_of(Submit)
    assert wire_tokens(submit) == stage.tokenizer.encode(stage.template.render(MESSAGES), add_special_tokens=False)


async def test_a_streamed_chat_gives_the_same_text_in_pieces_that_never_split_a_character(stage: Any) -> None:
    stage.says(TEXT)
    stream = await stage.client().chat.completions.create(model="demo", messages=MESSAGES, stream=True)
    chunks = [chunk async for chunk in stream]
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == TEXT
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
    assert all(chunk.usage is None for chunk in chunks)


async def test_a_stream_with_usage_ends_with_a_chunk_of_exact_usage(stage: Any) -> None:
    tokens = stage.says(TEXT)
    stream = await stage.client().chat.completions.create(
        model="demo", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(tokens)
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.parametrize("streamed", [False, True])
async def test_usage_says_how_much_of_the_prompts_was_found_in_the_prefix_cache(stage: Any, streamed: bool) -> None:
    def script(submit: Submit) -> None:
        stage.backstage.frame([(submit.request, 40, 0), (submit.request + 1, 41, 0)], [(submit.request, 3)])
        stage.backstage.frame([(submit.request, 42, 2), (submit.request + 1, 43, 2)])

    stage.backstage.script = script
    options = {"stream": True, "stream_options": {"include_usage": True}} if streamed else {}
    answer = await stage.client().completions.create(
        model="demo", prompt=["four words of prompt", "and four more words"], n=2, **options
    )
    usage = [chunk.usage async for chunk in answer][-1] if streamed else answer.usage
    assert usage.prompt_tokens_details.cached_tokens == 6
    stage.backstage.script = lambda submit: stage.backstage.speak(submit, [40])
    answer = await stage.client().completions.create(model="demo", prompt="never seen before")
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


async def test_tokens_that_complete_no_character_make_no_chunk_but_count(stage: Any) -> None:
    tokens = stage.says("\N{GRINNING FACE}")
    assert len(tokens) > 1
    stream = await stage.client().chat.completions.create(
        model="demo", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert texts == ["\N{GRINNING FACE}"]
    assert chunks[-1].usage.completion_tokens == len(tokens)


@pytest.mark.parametrize("streamed", [False, True])
async def test_choices_have_their_own_text_seed_and_index(stage: Any, streamed: bool) -> None:
    tokens = stage.says("twice")
    answer = await stage.client().chat.completions.create(model="demo", messages=MESSAGES, n=3, seed=7, stream=streamed)
    texts = ["", "", ""]
    if streamed:
        async for chunk in answer:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    else:
        texts = [choice.message.content for choice in answer.choices]
        assert answer.usage.completion_tokens == 3 * len(tokens)
    assert texts == ["twice"] * 3
    [submit] = stage.backstage.all_of(Submit)
    seeds = [sampling.seed for sampling in submit.sampling]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3


async def test_every_prompt_of_a_list_is_a_request_of_its_own(stage: Any) -> None:
    tokens = stage.says("yes")
    answer = await stage.client().completions.create(model="demo", prompt=["one", "two"], n=2, seed=1)
    submits = stage.backstage.all_of(Submit)
    assert [wire_tokens(submit) for submit in submits] == [stage.tokenizer.encode(text) for text in ("one", "two")]
    assert submits[1].request == submits[0].request + 2
    assert submits[0].max_output_tokens == 16
    assert len({sampling.seed for submit in submits for sampling in submit.sampling}) == 4
    assert [(choice.index, choice.text) for choice in answer.choices] == [(index, "yes") for index in range(4)]
    assert answer.usage.prompt_tokens == sum(len(wire_tokens(submit)) for submit in submits)
    assert answer.usage.completion_tokens == 4 * len(tokens)


@pytest.mark.parametrize(("prompt", "expected"), [([5, 6, 7], [[5, 6, 7]]), ([[5], [6, 7]], [[5], [6, 7]])])
async def test_prompts_may_be_token_ids(stage: Any, prompt: Any, expected: list[list[int]]) -> None:
    stage.says("x")
    await stage.client().completions.create(model="demo", prompt=prompt)
    assert [wire_tokens(submit) for submit in stage.backstage.all_of(Submit)] == expected


async def test_a_streamed_completion_gives_text(stage: Any) -> None:
    stage.says(TEXT)
    stream = await stage.client().completions.create(model="demo", prompt="x", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == TEXT


async def test_models_are_listed_and_found_by_name(stage: Any) -> None:
    client = stage.client()
    assert [model.id async for model in client.models.list()] == ["demo"]
    assert (await client.models.retrieve("demo")).id == "demo"
    with pytest.raises(openai.NotFoundError, match='the model here is "demo"'):
        await client.models.retrieve("gpt-9")


async def test_parameters_reach_the_engine(stage: Any) -> None:
    stage.says("x")
    await stage.client().chat.completions.create(
        model="demo",
        messages=MESSAGES,
        temperature=0.5,
        top_p=0.9,
        user="u",
        service_tier="flex",
        max_completion_tokens=9,
        extra_body={"top_k": 4, "ignore_eos": True},
        extra_headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
    )
    [submit] = stage.backstage.all_of(Submit)
    [sampling] = submit.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.ignore_eos) == (0.5, 0.9, 4, True)
    assert (submit.tenant, submit.tier, submit.project, submit.key, submit.weight) == ("acme", "paid", "web", "one", 2)
    assert (submit.service_tier, submit.max_output_tokens) == ("flex", 9)
    assert submit.traceparent.startswith("00-0af7651916cd43dd8448eb211c80319c-"), "the client's trace, our span"
    assert 0 < submit.received_ns <= submit.tokenized_ns


async def test_a_chat_without_a_maximum_may_fill_what_is_left_of_the_smaller_limit(stage: Any) -> None:
    stage.says("x")
    await stage.client().chat.completions.create(model="demo", messages=MESSAGES)
    [submit] = stage.backstage.all_of(Submit)
    assert submit.max_output_tokens == 512 - len(wire_tokens(submit))
    assert not submit.declared


async def test_a_maximum_of_the_client_or_of_the_endpoint_is_a_declared_one(stage: Any) -> None:
    stage.says("x")
    await stage.client().chat.completions.create(model="demo", messages=MESSAGES, max_tokens=5)
    await stage.client().completions.create(model="demo", prompt="x")
    assert [submit.declared for submit in stage.backstage.all_of(Submit)] == [True, True]


@pytest.mark.parametrize(
    ("code", "error", "retry_after"),
    [
        ("queue_full", openai.RateLimitError, "3"),
        ("queue_timeout", openai.InternalServerError, "3"),
        ("context_length_exceeded", openai.BadRequestError, None),
        ("a_code_of_tomorrow", openai.InternalServerError, "3"),
    ],
)
async def test_a_refusal_of_admission_becomes_the_clients_exception(
    stage: Any, code: str, error: type[openai.APIStatusError], retry_after: str | None
) -> None:
    wait_s = None if retry_after is None else 2.5
    stage.backstage.script = lambda submit: stage.backstage.send(
        "admission", Refused(submit.request, code, "the sentence", wait_s)
    )
    for streamed in (False, True):
        with pytest.raises(error, match="the sentence") as caught:
            await stage.client().chat.completions.create(model="demo", messages=MESSAGES, stream=streamed)
        assert caught.value.code == code
        assert caught.value.response.headers.get("retry-after") == retry_after


async def test_an_error_in_the_middle_of_a_stream_is_an_event_of_its_own(stage: Any) -> None:
    def script(submit: Submit) -> None:
        stage.backstage.admit(submit)
        stage.backstage.frame([(submit.request, stage.tokenizer.encode("a")[0], 0)])

    stage.backstage.script = script
    stream = await stage.client().chat.completions.create(model="demo", messages=MESSAGES, stream=True)
    await anext(stream)
    [submit] = stage.backstage.all_of(Submit)
    stage.backstage.send("scheduler", RequestEnded(submit.request, "error", 1, "output_failed", "the engine died"))
    with pytest.raises(openai.APIError, match="the engine died"):
        async for _ in stream:
            pass


async def test_an_unknown_key_is_an_authentication_error(stage: Any) -> None:
    with pytest.raises(openai.AuthenticationError, match="not known"):
        await stage.client("fl-wrong").chat.completions.create(model="demo", messages=MESSAGES)
