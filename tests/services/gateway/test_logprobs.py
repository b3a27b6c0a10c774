"""Log-probabilities keep to the text of their tokens, in the forms the official client reads."""

from typing import Any

import pytest

from engine.interface import Sampling
from policies.commands import FinishReason
from services.gateway.logprobs import ChatForm, CompletionForm, LoggedText, Position
from services.wire import Submit

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
TEXT = "return line \N{GRINNING FACE}!"


def whole(tokenizer: Any, tokens: list[int]) -> bytes:
    return b"".join(tokenizer.token_bytes(token) for token in tokens)


async def test_a_chat_has_the_log_probabilities_of_every_token_it_shows(stage: Any) -> None:
    tokens = stage.says(TEXT, FinishReason.STOP)
    answer = await stage.client().chat.completions.create(
        model="demo", messages=MESSAGES, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    assert bytes(byte for entry in content for byte in entry.bytes) == TEXT.encode()
    assert [entry.logprob for entry in content] == [-index / 8 for index in range(len(tokens) - 1)]  # not of the end
    for entry in content:
        assert [(top.bytes, top.logprob) for top in entry.top_logprobs] == [
            (list(stage.tokenizer.token_bytes(300 + rank)), -1.0 - rank) for rank in range(2)
        ]
    [submit] = stage.backstage.all_of(Submit)
    assert submit.sampling[0].logprobs == 2


async def test_a_chunk_carries_the_log_probabilities_of_the_text_in_it(stage: Any) -> None:
    tokens = stage.says(TEXT)
    stream = await stage.client().chat.completions.create(
        model="demo", messages=MESSAGES, logprobs=True, stream=True, n=2
    )
    texts, data, numbers = ["", ""], [b"", b""], [list[float](), list[float]()]
    async for chunk in stream:
        [choice] = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        for entry in choice.logprobs.content if choice.logprobs else ():
            data[choice.index] += bytes(entry.bytes)
            numbers[choice.index].append(entry.logprob)
            assert entry.top_logprobs == []
        # Text and numbers never run apart.
        assert data[choice.index].decode() == texts[choice.index]
    assert texts == [TEXT] * 2
    assert numbers == [[-index / 8 for index in range(len(tokens))]] * 2


async def test_tokens_that_come_while_a_reader_waits_bring_theirs_too(stage: Any) -> None:
    first, *rest = stage.tokenizer.encode("one two three four", add_special_tokens=False)

    def script(submit: Submit) -> None:
        stage.backstage.admit(submit)
        stage.backstage.frame([(submit.request, first, 0)])

    stage.backstage.script = script
    stream = await stage.client().completions.create(model="demo", prompt="x", logprobs=0, stream=True)
    assert (await anext(stream)).choices[0].logprobs is None  # an executor of the version before gives none
    stage.backstage.speak(stage.backstage.all_of(Submit)[0], rest)
    names = []
    async for chunk in stream:
        part = chunk.choices[0].logprobs
        assert "".join(part.tokens if part else ()) == chunk.choices[0].text
        names += part.tokens if part else []
    assert names == [stage.tokenizer.token_bytes(token).decode() for token in rest]


@pytest.mark.parametrize(("stop", "left"), [(" three", "one two"), ("three", "one two three")])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_stop_string_takes_the_tokens_that_begin_in_it(
    stage: Any, streamed: bool, stop: str, left: str
) -> None:
    stage.says("one two three four")
    answer = await stage.client().chat.completions.create(
        model="demo", messages=MESSAGES, logprobs=True, stop=[stop], stream=streamed
    )
    if streamed:
        chunks = [chunk.choices[0] async for chunk in answer]
        entries = [entry for choice in chunks if choice.logprobs for entry in choice.logprobs.content]
    else:
        entries = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == left  # the token " three" begins before "three" does


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_completion_has_offsets_and_the_sampled_token_among_the_likeliest(stage: Any, streamed: bool) -> None:
    tokens = stage.says("yes, it is so")
    answer = await stage.client().completions.create(model="demo", prompt="x", logprobs=1, stream=streamed)
    parts = [chunk.choices[0].logprobs async for chunk in answer] if streamed else [answer.choices[0].logprobs]
    parts = [part for part in parts if part is not None]
    texts = [stage.tokenizer.token_bytes(token).decode() for token in tokens]
    assert [text for part in parts for text in part.tokens] == texts
    offsets = [sum(map(len, texts[:index])) for index in range(len(texts))]
    assert [offset for part in parts for offset in part.text_offset] == offsets
    assert [number for part in parts for number in part.token_logprobs] == [-i / 8 for i in range(len(tokens))]
    other = stage.tokenizer.token_bytes(300).decode()
    expected = [{other: -1.0, text: -index / 8} for index, text in enumerate(texts)]
    assert [top for part in parts for top in part.top_logprobs] == expected


async def test_who_asks_for_none_gets_none(stage: Any) -> None:
    stage.says("x")
    chat = await stage.client().chat.completions.create(model="demo", messages=MESSAGES)
    completion = await stage.client().completions.create(model="demo", prompt="x")
    assert chat.choices[0].logprobs is completion.choices[0].logprobs is None
    assert [submit.sampling[0] for submit in stage.backstage.all_of(Submit)] == [
        Sampling(seed=submit.sampling[0].seed) for submit in stage.backstage.all_of(Submit)
    ]


class Names:
    def token_bytes(self, token_id: int) -> bytes:
        return {1: b"a", 2: b"\xf0\x9f", 3: b"a", 4: b""}[token_id]


def test_a_token_that_is_no_whole_character_is_escaped() -> None:
    positions = [Position(0, [(2, -0.5), (1, -0.25)])]
    [entry] = ChatForm(Names()).document(positions)["content"]
    assert (entry["token"], entry["bytes"]) == (r"\xf0\x9f", [0xF0, 0x9F])
    assert CompletionForm(Names()).document(positions)["tokens"] == [r"bytes:\xf0\x9f"]


def test_of_tokens_with_the_same_text_the_likeliest_is_named_and_minus_infinity_is_a_number() -> None:
    form = CompletionForm(Names()).document([Position(0, [(4, float("-inf")), (1, -1.0), (3, -2.0)])])
    assert form["top_logprobs"] == [{"a": -1.0, "": -9999.0}]
    assert form["token_logprobs"] == [-9999.0]


class Spelling:
    """A token is as many letters as its id says; 0 is held until the next."""

    def __init__(self) -> None:
        self.held = 0

    def push(self, token_id: int) -> str:
        self.held += token_id == 0
        return "" if token_id == 0 else "x" * token_id

    def finish(self) -> str:
        return "?" * self.held


def test_positions_leave_with_their_text_once() -> None:
    text = LoggedText(Spelling())
    for token in (2, 0, 3, 1):
        text.note([(token, -1.0)])
        text.push(token)
    assert [position.offset for position in text.shown(3)] == [0, 2, 2]
    assert text.shown(5) == []
    assert text.finish() == "?"
    assert [position.offset for position in text.rest()] == [5]
    assert text.rest() == []
    assert text.num_bytes == 0
