"""Tool calls as text, in the form of Nous Research's Hermes models, which Qwen's share: the one form supported.

    <tool_call>
    {"name": "weather", "arguments": {"city": "Paris"}}
    </tool_call>

Owns the form and how a conversation with tools is told to a chat template that knows none. Knows no grammar.
"""

import json
from collections.abc import Sequence
from typing import Any

TRIGGER = "<tool_call>"
OPENING = TRIGGER + "\n"
NAME = '{"name": "'
ARGUMENTS = '", "arguments": '
CLOSING = "}\n</tool_call>"
SEPARATOR = "\n"
"""Between two calls."""

RESPONSE = "<tool_response>\n{}\n</tool_response>"
INSTRUCTIONS = """You may call functions. Each line between <tools> and </tools> describes one:
<tools>
{}
</tools>
To call a function, write its name and its arguments as JSON between <tool_call> and </tool_call>, in this form:
<tool_call>
{{"name": "the function's name", "arguments": {{"an argument's name": "its value"}}}}
</tool_call>"""


def call_text(name: str, arguments: Any) -> str:
    """One call, as a model writes it. `arguments`: a JSON document."""
    return f"{OPENING}{NAME}{name}{ARGUMENTS}{json.dumps(arguments, ensure_ascii=False)}{CLOSING}"


def as_plain_messages(messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same conversation for a chat template that knows neither tools nor their calls.

    The tools go to the end of a first system message, calls into their turn's text, and what tools answered one after
    the other into one turn of the user, because many templates want turns to alternate.
    """
    plain: list[dict[str, Any]] = []
    answering = False
    for message in messages:
        turn = _plain(message)
        if answering and message.get("role") == "tool":
            plain[-1]["content"] += SEPARATOR + turn["content"]
        else:
            plain.append(turn)
        answering = message.get("role") == "tool"
    if not tools:
        return plain
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    instructions = INSTRUCTIONS.format(lines)
    if plain and plain[0].get("role") == "system":
        first = {**plain[0], "content": f"{plain[0]['content']}\n\n{instructions}"}
        return [first, *plain[1:]]
    return [{"role": "system", "content": instructions}, *plain]


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    if message.get("role") == "tool":
        return {"role": "user", "content": RESPONSE.format(message["content"])}
    calls = [
        call_text(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())
    ]
    if not calls:
        return message
    content = SEPARATOR.join([message["content"], *calls] if message["content"] else calls)
    return {"role": message["role"], "content": content}
