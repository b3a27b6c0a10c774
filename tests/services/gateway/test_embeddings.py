"""/v1/embeddings: the official client, unmodified, and what is refused."""

from typing import Any

import numpy as np
import openai
import pytest

from policies.commands import FinishReason
from services.wire import RequestEnded, Submit

EMBEDDINGS = "/v1/embeddings"


def wire_tokens(submit: Submit) -> list[int]:
    return list(memoryview(submit.prompt).cast("i"))


def vector_of(submit: Submit) -> Any:
    """What the stage answers with: tells inputs apart."""
    return np.array([len(submit.prompt) // 4, wire_tokens(submit)[0], 0.1], np.float32)


@pytest.fixture
def embedding(stage: Any) -> Any:
    """The stage, answering each request with its vector; the last request first."""

    def script(submit: Submit) -> None:
        backstage = stage.backstage
        backstage.admit(submit)
        vectors = {submit.request: vector_of(submit).tobytes()}
        backstage.frame([(submit.request, 5, int(FinishReason.LENGTH))], vectors=vectors)
        backstage.send("scheduler", RequestEnded(submit.request, "finished", 0))

    stage.backstage.script = script
    return stage


@pytest.mark.parametrize("encoding", ["float", "base64", openai.NOT_GIVEN])
async def test_the_official_client_gets_a_vector_for_each_text(embedding: Any, encoding: Any) -> None:
    texts = ["Hello", "def parse(line): return line"]
    answer = await embedding.client().embeddings.create(model="demo", input=texts, encoding_format=encoding)
    submits = embedding.backstage.all_of(Submit)
    assert [wire_tokens(submit) for submit in submits] == [embedding.tokenizer.encode(text) for text in texts]
    assert [each.index for each in answer.data] == [0, 1]
    if encoding == "base64":
        import base64

        vectors = [np.frombuffer(base64.b64decode(each.embedding), np.float32) for each in answer.data]
    else:
        vectors = [np.array(each.embedding, np.float32) for each in answer.data]
    assert all((vector == vector_of(submit)).all() for vector, submit in zip(vectors, submits, strict=True))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(len(wire_tokens(each)) for each in submits)
    assert answer.model == "demo"


@pytest.mark.parametrize(
    ("given", "tokens"),
    [("Hello", None), (["Hello"], None), ([5, 6, 7], [[5, 6, 7]]), ([[5, 6, 7], [8]], [[5, 6, 7], [8]])],
)
async def test_an_input_is_a_text_or_token_ids_or_several(embedding: Any, given: Any, tokens: Any) -> None:
    answer = await embedding.client().embeddings.create(model="demo", input=given)
    submits = embedding.backstage.all_of(Submit)
    assert [wire_tokens(submit) for submit in submits] == (tokens or [embedding.tokenizer.encode("Hello")])
    assert len(answer.data) == len(submits)


@pytest.mark.parametrize(("asked", "pooling", "shares"), [({}, "mean", False), ({"pooling": "last"}, "last", True)])
async def test_a_mean_is_asked_for_and_shares_no_prefix(embedding: Any, asked: Any, pooling: str, shares: bool) -> None:
    await embedding.client().embeddings.create(model="demo", input="Hello", extra_body=asked)
    [submit] = embedding.backstage.all_of(Submit)
    assert (submit.pooling, submit.shares_prefix, submit.max_output_tokens) == (pooling, shares, 1)


@pytest.mark.parametrize(
    ("more", "refusal", "says"),
    [
        ({}, (400, "missing_parameter"), "input is required"),
        ({"input": ""}, (400, "invalid_value"), "input: is empty; it must have at least one token"),
        ({"input": []}, (400, "invalid_value"), "input: a list must hold only strings"),
        ({"input": ["x", ""]}, (400, "invalid_value"), "input: is empty"),
        ({"input": [[1], []]}, (400, "invalid_value"), "input: is empty"),
        ({"input": ["x", 3]}, (400, "invalid_value"), "input: a list must hold only strings"),
        ({"input": [99999]}, (400, "invalid_value"), "input: token id 99999 is not in the model's vocabulary of 4096"),
        ({"input": ["x"] * 65}, (400, "invalid_value"), "input: 65 inputs in one request; at most 64 are allowed"),
        ({"input": [5] * 512}, (400, "context_length_exceeded"), "at most 512 tokens"),
        ({"input": "x", "dimensions": 3}, (400, "unsupported_parameter"), "dimensions is not supported here; leave it"),
        ({"input": "x", "encoding_format": "int8"}, (400, "invalid_value"), "encoding_format: "),
        ({"input": "x", "pooling": "max"}, (400, "invalid_value"), "allowed: mean, last"),
        ({"input": "x", "model": "gpt"}, (404, "model_not_found"), 'the model here is "demo"'),
        ({"input": "x", "temperature": 1}, (400, "unknown_parameter"), "temperature is not a parameter of this"),
    ],
)
async def test_what_cannot_be_embedded_is_refused(
    embedding: Any, more: dict[str, Any], refusal: tuple[int, str], says: str
) -> None:
    status, document, _ = await embedding.post(EMBEDDINGS, {"model": "demo", **more})
    assert (status, document["error"]["code"]) == refusal
    assert says in document["error"]["message"]
    assert embedding.backstage.all_of(Submit) == []


async def test_an_executor_without_embeddings_ends_the_request_with_its_reason(stage: Any) -> None:
    def script(submit: Submit) -> None:
        stage.backstage.admit(submit)
        ended = RequestEnded(submit.request, "error", 0, "output_failed", "the paced engine has no embeddings")
        stage.backstage.send("scheduler", ended)

    stage.backstage.script = script
    _, document, _ = await stage.post(EMBEDDINGS, {"model": "demo", "input": "x"})
    assert document["error"]["message"] == "the paced engine has no embeddings"


async def test_a_frame_without_the_vector_is_an_error_and_no_answer(stage: Any) -> None:
    stage.says("x")
    status, document, _ = await stage.post(EMBEDDINGS, {"model": "demo", "input": "x"})
    assert status == 500
    assert document["error"]["message"] == "the executor gave no embedding of input 0"
