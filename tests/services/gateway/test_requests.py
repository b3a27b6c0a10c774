from typing import Any

import msgspec
import pytest

from engine.grammar import lark
from services.errors import RequestError
from services.gateway.requests import read_chat, read_completion

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}


def chat(**more: Any) -> bytes:
    return msgspec.json.encode(CHAT | more)


def refusal(data: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read_chat(data)
    return caught.value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("functions", [{}]),
        ("audio", {}),
        ("modalities", ["audio"]),
        ("prediction", {}),
        ("store", True),
        ("metadata", {"a": "b"}),
        ("reasoning_effort", "low"),
        ("web_search_options", {}),
        ("echo", True),
        ("best_of", 2),
        ("suffix", "x"),
    ],
)
def test_an_unsupported_parameter_is_refused_by_name(name: str, value: Any) -> None:
    error = refusal(chat(**{name: value}))
    assert (error.status, error.code, error.param) == (400, "unsupported_parameter", name)
    assert name in error.message


@pytest.mark.parametrize(
    "harmless",
    [
        {"logprobs": False, "top_logprobs": None},
        {"frequency_penalty": 0, "presence_penalty": 0.0},
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}},
        {
            "logit_bias": {},
            "stop_token_ids": [],
            "min_tokens": 0,
            "min_p": 0,
            "n": 1,
            "stop": None,
            "stream": False,
            "seed": None,
            "max_tokens": None,
        },
    ],
)
def test_a_parameter_that_asks_for_nothing_is_accepted(harmless: dict[str, Any]) -> None:
    assert read_chat(chat(**harmless)).choices == 1


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"temprature": 1}, "unknown_parameter", "temprature"),
        ({"temperature": 2.5}, "invalid_value", "temperature"),
        ({"temperature": "hot"}, "invalid_type", "temperature"),
        ({"top_p": 0}, "invalid_value", "top_p"),
        ({"n": 0}, "invalid_value", "n"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "invalid_value", "max_tokens"),
        ({"stop": ["a", ""]}, "invalid_value", "stop[1]"),
        ({"stop": ["a"] * 17}, "invalid_value", "stop"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{"role": "wizard"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "invalid_type", "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "invalid_value", None),
        ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "invalid_type", "messages[0].tool_calls[0]"),
        ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
        ({"seed": 2**63}, "invalid_value", "seed"),
    ],
)
def test_a_wrong_parameter_is_named_with_its_path(more: dict[str, Any], code: str, param: str | None) -> None:
    error = refusal(chat(**more))
    assert (error.status, error.code) == (400, code)
    assert error.param == (param or "messages[0].content[0].type")
    assert (error.param or "") in error.message


def test_a_misspelt_parameter_is_told_its_nearest_name() -> None:
    assert 'did you mean "temperature"?' in refusal(chat(temprature=1)).message


def test_a_missing_parameter_is_named() -> None:
    error = refusal(b'{"messages": [{"role": "user"}]}')
    assert (error.code, error.param) == ("missing_parameter", "model")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"model": "\xff"}', b"[1]", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(data: bytes) -> None:
    assert refusal(data).status == 400


def test_text_parts_are_joined_and_a_developer_speaks_as_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = read_chat(chat(messages=[{"role": "developer", "content": parts}]))
    assert body.messages[0].for_template() == {"role": "system", "content": "ab"}


def test_an_answer_of_ours_can_be_sent_back_as_a_message() -> None:
    said = {"role": "assistant", "content": "hi", "refusal": None, "tool_calls": None, "annotations": []}
    assert read_chat(chat(messages=[said])).messages[0].for_template() == {"role": "assistant", "content": "hi"}


CALL = {"id": "one", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
ANSWER = {"role": "tool", "tool_call_id": "one", "content": "2"}
FUNCTION = {"type": "function", "function": {"name": "f"}}
NAMED = {"type": "function", "function": {"name": "g"}}


def test_calls_and_their_answers_reach_the_template_with_arguments_as_objects() -> None:
    body = read_chat(chat(messages=[{"role": "assistant", "tool_calls": [CALL]}, ANSWER]))
    function = {"name": "f", "arguments": {"a": 1}}
    assert [turn.for_template() for turn in body.messages] == [
        {"role": "assistant", "content": "", "tool_calls": [{"id": "one", "type": "function", "function": function}]},
        {"role": "tool", "content": "2", "tool_call_id": "one"},
    ]


@pytest.mark.parametrize(
    ("turns", "code", "param"),
    [
        ([{"role": "user", "content": "x", "tool_calls": [CALL]}], "invalid_value", "messages[0].tool_calls"),
        ([ANSWER], "invalid_value", "messages[0].tool_call_id"),
        ([{"role": "user", "content": "x", "tool_call_id": "one"}], "invalid_value", "messages[0].tool_call_id"),
        ([{"role": "tool", "content": "2"}], "missing_parameter", "messages[0].tool_call_id"),
        ([{"role": "tool", "tool_call_id": "one"}], "missing_parameter", "messages[0].content"),
        (
            [{"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": "[1]"}}]}],
            "invalid_value",
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            [{"role": "assistant", "tool_calls": [CALL | {"type": "custom"}]}],
            "invalid_value",
            "messages[0].tool_calls[0].type",
        ),
    ],
)
def test_turns_that_do_not_fit_their_role_are_refused(turns: Any, code: str, param: str) -> None:
    error = refusal(chat(messages=turns))
    assert (error.code, error.param) == (code, param)
    assert param in error.message


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"response_format": {"type": "yaml"}}, "invalid_value", "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "missing_parameter", "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "missing_parameter",
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x y", "schema": {}}}},
            "invalid_value",
            "response_format.json_schema.name",
        ),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "invalid_value", "ignore_eos"),
        ({"tools": [{"type": "custom"}]}, "invalid_value", "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "missing_parameter", "tools[0].function"),
        ({"tools": [FUNCTION, FUNCTION]}, "invalid_value", "tools"),
        ({"tools": [FUNCTION], "tool_choice": NAMED}, "invalid_value", "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": "always"}, "invalid_value", "tool_choice"),
        ({"tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"tools": [FUNCTION], "ignore_eos": True}, "invalid_value", "ignore_eos"),
    ],
)
def test_a_wrong_form_of_the_answer_is_refused(more: dict[str, Any], code: str, param: str) -> None:
    error = refusal(chat(**more))
    assert (error.status, error.code, error.param) == (400, code, param)
    assert param in error.message


def test_a_schema_too_deep_to_be_written_down_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def nested(schema: Any) -> str:
        raise RecursionError

    monkeypatch.setattr(lark, "document", nested)
    structure = read_chat(chat(response_format={"type": "json_object"})).structure()
    with pytest.raises(RequestError, match="nested too deeply") as caught:
        structure.grammar()
    assert caught.value.param == "response_format"


@pytest.mark.parametrize("name", ["response_format", "tools"])
def test_completions_have_no_form(name: str) -> None:
    body = {"model": "demo", "prompt": "x", name: [FUNCTION] if name == "tools" else {"type": "json_object"}}
    with pytest.raises(RequestError) as caught:
        read_completion(msgspec.json.encode(body))
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", name)


@pytest.mark.parametrize("prompt", [[], ["a", 1], [[1], "a"]])
def test_a_list_of_prompts_is_of_one_kind_and_not_empty(prompt: Any) -> None:
    body = read_completion(msgspec.json.encode({"model": "demo", "prompt": prompt}))
    with pytest.raises(RequestError, match="only strings"):
        _ = body.prompts


def test_best_of_as_many_as_asked_for_is_no_request_for_more() -> None:
    body = read_completion(msgspec.json.encode({"model": "demo", "prompt": "x", "n": 2, "best_of": 2}))
    assert body.choices == 2


def test_the_first_choice_takes_the_seed_itself_and_no_two_share_one() -> None:
    body = read_completion(msgspec.json.encode({"model": "demo", "prompt": ["a", "b"], "n": 3, "seed": -1}))
    seeds = [sampling.seed for index in range(2) for sampling in body.sampling(5, index * 3)]
    assert seeds[0] == 5
    assert len(set(seeds)) == 6
