"""Anthropic's bodies: what they are in the words of a chat, and what is refused by name."""

from typing import Any

import msgspec
import pytest

from services.errors import RequestError
from services.gateway.message_bodies import MessagesBody, read_messages

USER: Any = {"role": "user", "content": "Hello"}
USE: Any = {"type": "tool_use", "id": "toolu_1", "name": "now", "input": {"zone": "utc"}}
CALLED: Any = {"id": "toolu_1", "type": "function", "function": {"name": "now", "arguments": {"zone": "utc"}}}


def read(**more: Any) -> MessagesBody:
    return read_messages(msgspec.json.encode({"model": "demo", "max_tokens": 5, "messages": [USER], **more}))


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [said("user", "Hello")]),
        ({"system": "Be brief."}, [said("system", "Be brief."), said("user", "Hello")]),
        ({"system": ""}, [said("user", "Hello")]),
        (
            {"system": [text("Be brief."), text("Be kind.") | {"cache_control": {"type": "ephemeral"}}]},
            [said("system", "Be brief.\nBe kind."), said("user", "Hello")],
        ),
        ({"messages": [{"role": "user", "content": [text("a"), text("b")]}]}, [said("user", "a\nb")]),
        ({"messages": [USER, said("user", "again")]}, [said("user", "Hello\nagain")]),
        (
            {"messages": [USER, said("assistant", "Yes?"), said("user", "Go.")]},
            [said("user", "Hello"), said("assistant", "Yes?"), said("user", "Go.")],
        ),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "content": [text("Let me look.") | {"citations": None}, USE]},
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [text("12:00")]},
                            text("And now?"),
                        ],
                    },
                ]
            },
            [
                said("user", "Hello"),
                said("assistant", "Let me look.", tool_calls=[CALLED]),
                said("tool", "12:00", tool_call_id="toolu_1"),
                said("user", "And now?"),
            ],
        ),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "content": [USE]},
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "no clock", "is_error": True}
                        ],
                    },
                ]
            },
            [
                said("user", "Hello"),
                said("assistant", "", tool_calls=[CALLED]),
                said("tool", "Error: no clock", tool_call_id="toolu_1"),
            ],
        ),
    ],
)
def test_a_conversation_becomes_the_turns_of_a_chat(given: dict[str, Any], expected: list[dict[str, Any]]) -> None:
    assert read(**given).for_template() == expected


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}


@pytest.mark.parametrize(
    ("given", "code", "says"),
    [
        ({"max_tokens": None}, "invalid_type", "max_tokens"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens: 0 is out of bounds: it must be at least 1"),
        ({"temperature": 1.5}, "invalid_value", "temperature: 1.5 is out of bounds"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"max_token": 5}, "unknown_parameter", 'did you mean "max_tokens"'),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            "unsupported_parameter",
            "thinking is not supported",
        ),
        ({"mcp_servers": [{"name": "x"}]}, "unsupported_parameter", "mcp_servers is not supported"),
        ({"output_config": {"effort": "high"}}, "unsupported_parameter", "output_config.effort is not supported"),
        (
            {"messages": [{"role": "user", "content": [IMAGE]}]},
            "invalid_value",
            "messages[0].content[0].type: invalid value 'image'; allowed: text, tool_use, tool_result",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_value", "allowed: user, assistant, system"),
        ({"messages": [{"role": "user", "content": []}]}, "invalid_value", "messages[0].content: is empty"),
        ({"messages": [USER, said("assistant", "The best answer is (")]}, "invalid_value", "cannot be continued here"),
        ({"messages": [{"role": "user", "content": [USE]}]}, "invalid_value", "only an assistant calls tools"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_9"}]}]},
            "invalid_value",
            'messages[0].content[0].tool_use_id: no assistant made the call "toolu_9" before',
        ),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "invalid_value",
            "tools[0].type: invalid enum value 'web_search_20250305'; allowed: custom",
        ),
        (
            {"tools": [{"name": "now", "input_schema": {}, "defer_loading": True}]},
            "unsupported_parameter",
            "tools[0].defer_loading is not supported",
        ),
        ({"tool_choice": {"type": "all"}}, "invalid_value", "allowed: auto, any, tool, none"),
    ],
)
def test_what_is_not_served_is_refused_by_name(given: dict[str, Any], code: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(**given)
    assert says in caught.value.message
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tool_choice": {"type": "any"}}, "there are no tools to choose from"),
        ({"tool_choice": {"type": "tool", "name": "now"}}, 'there is no function "now"'),
    ],
)
def test_a_choice_of_a_tool_that_is_not_there_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        read(**given).structure()


def test_the_schemas_of_a_request_have_its_own_parameters_names() -> None:
    schema = {"type": "object"}
    body = read(
        tools=[{"name": "now", "input_schema": schema}],
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    names = [name for name, _ in body.structure().schemas()]
    assert names == ["output_config.format.schema", "tools[0].input_schema"]
