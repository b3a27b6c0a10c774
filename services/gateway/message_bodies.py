"""What a client may ask of /v1/messages: Anthropic's request bodies, validated once at the door.

Owns names, types and bounds of its parameters, and what they are in the words of a chat. As in `requests`, a parameter
that would be ignored is refused by name, unless its value asks for nothing. Knows no tokens and no other service.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta, Struct

from engine.interface import Sampling
from services.errors import RequestError
from services.gateway.requests import MAX_STOPS, MAX_TOOLS, MAX_TURNS, Stop, convert, drop_harmless, read_fields
from services.gateway.sampling import SamplingFields, TierName
from services.gateway.structure import (
    Function,
    FunctionName,
    JsonSchema,
    Name,
    NamedTool,
    ParameterNames,
    Schema,
    SchemaFormat,
    Structure,
    Tool,
    read_structure,
)
from services.gateway.structure import ToolChoice as ChatToolChoice

CacheControl = dict[str, Any]
"""Accepted wherever Anthropic has it: what requests begin with alike is cached whether or not it is marked."""
BLOCK_SEPARATOR = "\n"
NAMES = ParameterNames("output_config.format.schema", "input_schema", "output_config")


class TextBlock(Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """A piece of text."""

    text: str
    cache_control: CacheControl | None = None


class ToolUseBlock(Struct, forbid_unknown_fields=True, tag_field="type", tag="tool_use"):
    """A call of an assistant's turn."""

    id: str
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = None


class ToolResultBlock(Struct, forbid_unknown_fields=True, tag_field="type", tag="tool_result"):
    """What a call came to."""

    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool = False
    cache_control: CacheControl | None = None


Block = TextBlock | ToolUseBlock | ToolResultBlock


class Turn(Struct, forbid_unknown_fields=True):
    """One turn of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]

    @property
    def blocks(self) -> list[Block]:
        """The content, a plain string as one block."""
        return [TextBlock(self.content)] if isinstance(self.content, str) else self.content


class MessageTool(Struct, forbid_unknown_fields=True):
    """A function that the model may ask its client to call."""

    name: Name
    input_schema: Schema
    type: Literal["custom"] | None = None
    description: str | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None


class AutoChoice(Struct, forbid_unknown_fields=True, tag_field="type", tag="auto"):
    """Calls or text."""

    disable_parallel_tool_use: bool = False


class AnyChoice(Struct, forbid_unknown_fields=True, tag_field="type", tag="any"):
    """At least one call."""

    disable_parallel_tool_use: bool = False


class ToolChoice(Struct, forbid_unknown_fields=True, tag_field="type", tag="tool"):
    """A call of this one."""

    name: str
    disable_parallel_tool_use: bool = False


class NoChoice(Struct, forbid_unknown_fields=True, tag_field="type", tag="none"):
    """No call."""


Choice = AutoChoice | AnyChoice | ToolChoice | NoChoice


class JsonFormat(Struct, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    """A JSON document that a schema accepts."""

    schema: Schema


class OutputConfig(Struct, forbid_unknown_fields=True):
    """The form of the answer."""

    format: JsonFormat | None = None


class Metadata(Struct, forbid_unknown_fields=True):
    """About the request."""

    user_id: str | None = None


class CountBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/messages/count_tokens: what makes the prompt."""

    model: str
    messages: Annotated[list[Turn], Meta(min_length=1, max_length=MAX_TURNS)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[MessageTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Choice | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None

    def structure(self) -> Structure:
        """The form that the answer is to have; errors as `read_structure`."""
        tools = [
            Tool(Function(tool.name, tool.description, tool.input_schema, tool.strict)) for tool in self.tools or ()
        ]
        asked = self.output_config.format if self.output_config is not None else None
        form = None if asked is None else SchemaFormat(JsonSchema("output", asked.schema))
        choice: ChatToolChoice | None = None
        alone = False
        match self.tool_choice:
            case AutoChoice(disable_parallel_tool_use=alone):
                choice = "auto"
            case AnyChoice(disable_parallel_tool_use=alone):
                choice = "required"
            case ToolChoice(name=name):
                choice = NamedTool(FunctionName(name))
            case NoChoice():
                choice = "none"
        return read_structure(form, tools, choice, not alone, NAMES)

    def for_template(self) -> list[dict[str, Any]]:
        """The conversation as chat templates expect it. Turns of one role that follow each other are one turn."""
        system = [self.system] if isinstance(self.system, str) else [block.text for block in self.system or ()]
        turns = [_said("system", system)] if any(system) else []
        role, blocks = "", list[Block]()
        for turn in self.messages:
            if turn.role != role:
                turns += _turns(role, blocks)
                role, blocks = turn.role, []
            blocks += turn.blocks
        return turns + list(_turns(role, blocks))


class MessagesBody(CountBody, kw_only=True):
    """POST /v1/messages."""

    max_tokens: Annotated[int, Meta(ge=1)]
    stream: bool | None = None
    stop_sequences: Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    service_tier: TierName | None = None
    metadata: Metadata | None = None

    seed = None
    choices = 1

    @property
    def stops(self) -> list[str]:
        """Stop strings, none of them empty."""
        return self.stop_sequences or []

    @property
    def maximum(self) -> int:
        """As `Asked.maximum`."""
        return self.max_tokens

    def check_room(self, num_tokens: int) -> None:
        """Nothing here asks for a least length."""

    def sampling(self, seed: int, first: int) -> list[Sampling]:
        """As `Asked.sampling`."""
        fields = SamplingFields(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)
        return fields.sampling(seed, first)


HARMLESS: dict[str, tuple[Any, ...]] = {
    "container": (None,),
    "context_management": (None,),
    "diagnostics": (None,),
    "inference_geo": (None,),
    "mcp_servers": (None, []),
    "speed": (None, "standard"),
    "thinking": (None, {"type": "disabled"}, {"type": "adaptive"}),
}
"""Anthropic's parameters that are not served -> the values that ask for nothing."""

HARMLESS_IN_TOOLS: dict[str, tuple[Any, ...]] = {
    "allowed_callers": (None, ["direct"]),
    "defer_loading": (None, False),
    "eager_input_streaming": (None, True, False),
    "input_examples": (None, []),
}
"""The arguments of a call are always streamed as they are made."""

HARMLESS_IN_BLOCKS: dict[str, tuple[Any, ...]] = {
    "caller": (None, {"type": "direct"}),
    "citations": (None, [], {"enabled": False}),
    "toolset_name": (None,),
}
"""What clients send back when they repeat an answer as a turn."""

ALLOWED = {
    ".role": "user, assistant, system",
    "content[].content[].type": "text",
    "content[].type": "text, tool_use, tool_result",
    "system[].type": "text",
    "tools[].type": "custom",
    "tool_choice.type": "auto, any, tool, none",
    "output_config.format.type": "json_schema",
}
"""As in `requests`."""

AnyBody = TypeVar("AnyBody", bound=CountBody)


def read_messages(data: bytes) -> MessagesBody:
    """The body of a message request.

    Raises:
        RequestError: bad JSON, or a parameter that is missing, unknown, unsupported or out of bounds.
    """
    return _read(data, MessagesBody)


def read_count(data: bytes) -> CountBody:
    """The body of a request to count tokens; errors as `read_messages`."""
    return _read(data, CountBody)


def _read(data: bytes, kind: type[AnyBody]) -> AnyBody:
    fields = read_fields(data)
    drop_harmless(fields, HARMLESS, "")
    for place, tool in _objects(fields.get("tools"), "tools"):
        drop_harmless(tool, HARMLESS_IN_TOOLS, f"{place}.")
    for place, turn in _objects(fields.get("messages"), "messages"):
        for inner, block in _objects(turn.get("content"), f"{place}.content"):
            drop_harmless(block, HARMLESS_IN_BLOCKS, f"{inner}.")
    config = fields.get("output_config")
    if isinstance(config, dict):
        drop_harmless(config, {"effort": (None,), "task_budget": (None,)}, "output_config.")
    body = convert(fields, kind, ALLOWED)
    _check_turns(body.messages)
    return body


def _objects(items: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of what should be a list of them, with their places."""
    for index, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict):
            yield f"{name}[{index}]", item


def _check_turns(turns: Sequence[Turn]) -> None:
    """What each role may say, that results are of calls that were made, and that the answer begins a turn.

    Raises:
        RequestError: a turn says what its role cannot, or the last one is the assistant's.
    """
    called: set[str] = set()
    for index, turn in enumerate(turns):
        if not turn.blocks:
            raise _wrong(f"messages[{index}].content", "is empty; it must have at least one block")
        for number, block in enumerate(turn.blocks):
            place = f"messages[{index}].content[{number}]"
            match block:
                case ToolUseBlock() if turn.role == "assistant":
                    called.add(block.id)
                case ToolUseBlock():
                    raise _wrong(place, f"only an assistant calls tools, not a {turn.role}")
                case ToolResultBlock() if turn.role != "user":
                    raise _wrong(place, f"only a user says what calls came to, not a {turn.role}")
                case ToolResultBlock() if block.tool_use_id not in called:
                    raise _wrong(f"{place}.tool_use_id", f'no assistant made the call "{block.tool_use_id}" before')
    if turns[-1].role == "assistant":
        raise _wrong("messages", "the last turn must be the user's; an assistant's turn cannot be continued here")


def _wrong(param: str, reason: str) -> RequestError:
    return RequestError("invalid_value", f"{param}: {reason}", param=param)


def _turns(role: str, blocks: Sequence[Block]) -> Iterator[dict[str, Any]]:
    """The blocks of a turn as chat templates expect them: results of calls are turns of their own."""
    texts = list[str]()
    calls = list[dict[str, Any]]()
    for block in blocks:
        match block:
            case TextBlock(text=text):
                texts.append(text)
            case ToolUseBlock():
                function = {"name": block.name, "arguments": block.input}
                calls.append({"id": block.id, "type": "function", "function": function})
            case ToolResultBlock():
                if texts:
                    yield _said(role, texts)
                    texts = []
                yield _result(block)
    if calls:
        yield _said(role, texts) | {"tool_calls": calls}
    elif texts:
        yield _said(role, texts)


def _said(role: str, texts: Sequence[str]) -> dict[str, Any]:
    return {"role": role, "content": BLOCK_SEPARATOR.join(texts)}


def _result(block: ToolResultBlock) -> dict[str, Any]:
    """Templates have no mark for a call that failed, so its text says it."""
    content = block.content or ""
    text = content if isinstance(content, str) else BLOCK_SEPARATOR.join(part.text for part in content)
    said = f"Error: {text}" if block.is_error else text
    return {"role": "tool", "content": said, "tool_call_id": block.tool_use_id}
