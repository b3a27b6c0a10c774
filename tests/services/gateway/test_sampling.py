"""Sampling parameters: what reaches the engine, and what is said of values that cannot."""

from typing import Any

import msgspec
import pytest

from engine.interface import Sampling
from services.errors import RequestError
from services.gateway.requests import read_chat, read_completion

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}


def chat(**more: Any) -> bytes:
    return msgspec.json.encode(CHAT | more)


def refusal(**more: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read_chat(chat(**more)).check_tokens(100)
    assert (caught.value.status, caught.value.code) == (400, "invalid_value")
    return caught.value


def test_every_parameter_reaches_the_engine() -> None:
    asked = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.1,
        "presence_penalty": -0.5,
        "frequency_penalty": 1.5,
        "repetition_penalty": 1.2,
        "min_tokens": 3,
        "ignore_eos": True,
        "stop_token_ids": [5, 6],
        "logit_bias": {"7": -100, "8": 2.5},
        "logprobs": True,
        "top_logprobs": 2,
    }
    [sampling] = read_chat(chat(**asked)).sampling(9, 0)
    assert sampling == Sampling(
        temperature=0.5,
        top_p=0.9,
        top_k=4,
        seed=9,
        min_p=0.1,
        presence_penalty=-0.5,
        frequency_penalty=1.5,
        repetition_penalty=1.2,
        min_tokens=3,
        ignore_eos=True,
        stop_token_ids=(5, 6),
        logit_bias={7: -100, 8: 2.5},
        logprobs=2,
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sampling), type=Sampling) == sampling


def test_what_nobody_asks_for_is_left_as_it_is() -> None:
    nothing = {"presence_penalty": None, "min_p": 0, "logit_bias": {}, "logprobs": False, "stop_token_ids": None}
    assert read_chat(chat(**nothing)).sampling(1, 0) == [Sampling(seed=1)]


@pytest.mark.parametrize(
    ("asked", "expected"), [({}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 20}, 20)]
)
def test_a_chat_asks_for_log_probabilities_and_how_many_beside(asked: dict[str, Any], expected: int | None) -> None:
    assert read_chat(chat(**asked)).num_logprobs == expected


@pytest.mark.parametrize(("asked", "expected"), [({}, None), ({"logprobs": 0}, 0), ({"logprobs": 5}, 5)])
def test_a_completion_asks_for_a_number_of_log_probabilities(asked: dict[str, Any], expected: int | None) -> None:
    body = read_completion(msgspec.json.encode({"model": "demo", "prompt": "x", **asked}))
    assert [sampling.logprobs for sampling in body.sampling(1, 0)] == [expected]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"presence_penalty": 3}, "presence_penalty: 3 is out of bounds: it must be at least -2 and at most 2"),
        ({"frequency_penalty": -2.5}, "frequency_penalty: -2.5 is out of bounds: it must be at least -2 and at most 2"),
        ({"repetition_penalty": 0}, "repetition_penalty: 0 is out of bounds: it must be more than 0 and at most 1000"),
        ({"min_p": 1.5}, "min_p: 1.5 is out of bounds: it must be at least 0 and at most 1"),
        ({"temperature": -1}, "temperature: -1 is out of bounds: it must be at least 0 and at most 2"),
        ({"top_k": 2**31}, "top_k: 2147483648 is out of bounds: it must be at least 0 and less than 2147483648"),
        ({"min_tokens": -1}, "min_tokens: -1 is out of bounds: it must be at least 0"),
        (
            {"logprobs": True, "top_logprobs": 21},
            "top_logprobs: 21 is out of bounds: it must be at least 0 and at most 20",
        ),
        (
            {"logit_bias": {"1": 1, "2": 101}},
            "logit_bias[...]: 2: 101 is out of bounds: it must be at least -100 and at most 100",
        ),
        ({"stop_token_ids": [1, -4]}, "stop_token_ids[1]: -4 is out of bounds: it must be at least 0"),
        ({"top_logprobs": 1}, "top_logprobs needs logprobs: true"),
        (
            {"logit_bias": {"the": 1}},
            "logit_bias: the is not a token id of this model; its vocabulary has 100, from 0 to 99",
        ),
        (
            {"logit_bias": {"100": 1}},
            "logit_bias: 100 is not a token id of this model; its vocabulary has 100, from 0 to 99",
        ),
        (
            {"stop_token_ids": [100]},
            "stop_token_ids: 100 is not a token id of this model; its vocabulary has 100, from 0 to 99",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_bounds(asked: dict[str, Any], sentence: str) -> None:
    error = refusal(**asked)
    assert error.message == sentence
    assert error.param
    assert error.message.startswith(error.param)


@pytest.mark.parametrize(
    "asked", [{"logit_bias": {str(token): 1 for token in range(1025)}}, {"stop_token_ids": [1] * 129}]
)
def test_long_lists_are_refused(asked: dict[str, Any]) -> None:
    message = refusal(**asked).message
    assert "entries; at most 1" in message
