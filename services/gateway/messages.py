"""The turns of a conversation, as clients write them and as chat templates read them.

Owns what each role may say. Knows no template and no tokens.
"""

from typing import Any, Literal

import msgspec
from msgspec import Struct

from services.errors import RequestError
from services.gateway.json_bounds import check_parts

Role = Literal["system", "developer", "user", "assistant", "tool"]


class TextPart(Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """A part of a message."""

    text: str


class CalledFunction(Struct, forbid_unknown_fields=True):
    """What an assistant called."""

    name: str
    arguments: str
    """A JSON object."""


class ToolCall(Struct, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """A call of an assistant's turn."""

    id: str
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it: the arguments are an object."""
        arguments = msgspec.json.decode(self.function.arguments or b"{}", type=dict[str, Any])
        return {"id": self.id, "type": "function", "function": {"name": self.function.name, "arguments": arguments}}


class ChatMessage(Struct, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: Role
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it: content is one string, and a developer is who they call system."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        turn = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.name is not None:
            turn["name"] = self.name
        if self.tool_call_id is not None:
            turn["tool_call_id"] = self.tool_call_id
        calls = [call.for_template() for call in self.tool_calls or ()]
        return {**turn, "tool_calls": calls} if calls else turn


def check_turns(turns: list[ChatMessage]) -> None:
    """What each role must say, and that tools answer calls that were made.

    Raises:
        RequestError: a turn lacks what its role needs, or has what only another role says.
    """
    called: set[str] = set()
    for index, turn in enumerate(turns):
        place = f"messages[{index}]"
        if turn.content is None and turn.role != "assistant":
            name = f"{place}.content"
            raise RequestError("missing_parameter", f"{name} is required of role {turn.role}", param=name)
        if turn.tool_calls and turn.role != "assistant":
            name = f"{place}.tool_calls"
            raise RequestError("invalid_value", f"{name}: only an assistant calls tools, not a {turn.role}", param=name)
        for number, call in enumerate(turn.tool_calls or ()):
            called.add(call.id)
            name = f"{place}.tool_calls[{number}].function.arguments"
            try:
                check_parts(call.function.arguments.encode(), name)
                call.for_template()
            except (msgspec.DecodeError, UnicodeError) as error:
                message = f"{name} must be a JSON object, written as a string: {error}"
                raise RequestError("invalid_value", message, param=name) from error
        name = f"{place}.tool_call_id"
        if turn.role == "tool" and turn.tool_call_id is None:
            raise RequestError("missing_parameter", f"{name} is required of role tool", param=name)
        if turn.tool_call_id is not None and (turn.role != "tool" or turn.tool_call_id not in called):
            reason = "no assistant made this call before" if turn.role == "tool" else f"a {turn.role} answers no call"
            raise RequestError("invalid_value", f"{name}: {reason}", param=name)
