"""What a client may ask: OpenAI's request bodies, validated once at the door.

Owns names, types and bounds of parameters. A parameter that would be ignored is refused by name, unless its value asks
for nothing. Knows no tokens, no tenants and no other service.
"""

import difflib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, cast, get_args

import msgspec
from msgspec import Meta, Struct

from engine.interface import MAX_LOGPROBS
from services.errors import RequestError
from services.gateway.bounds import out_of_bounds
from services.gateway.json_bounds import check_parts
from services.gateway.messages import ChatMessage, Role, check_turns
from services.gateway.sampling import SamplingFields, TierName
from services.gateway.structure import ResponseFormat, Structure, Tool, ToolChoice, read_structure

DEFAULT_COMPLETION_TOKENS = 16
"""What OpenAI's completions endpoint makes when no maximum is given."""
MAX_TURNS = 4096
MAX_TOOLS = 256
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1024

Stop = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)]


class StreamOptions(Struct, forbid_unknown_fields=True):
    """Options of a streamed answer."""

    include_usage: bool | None = None


class Body(SamplingFields, forbid_unknown_fields=True, kw_only=True):
    """What both endpoints share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    user: str | None = None
    service_tier: TierName | None = None

    @property
    def stops(self) -> list[str]:
        """Stop strings, none of them empty."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def include_usage(self) -> bool:
        """A streamed answer ends with a chunk of usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatBody(Body, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_TURNS)]
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None

    @property
    def maximum(self) -> int | None:
        """Output tokens asked for at most; None: as many as fit."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """As `SamplingFields.num_logprobs`."""
        return self.top_logprobs or 0 if self.logprobs else None

    def structure(self) -> Structure:
        """The form that the answer is to have; errors as `read_structure`."""
        return read_structure(self.response_format, self.tools or [], self.tool_choice, self.parallel_tool_calls)


class CompletionBody(Body, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None

    @property
    def maximum(self) -> int | None:
        """Output tokens asked for at most."""
        return self.max_tokens or DEFAULT_COMPLETION_TOKENS

    @property
    def num_logprobs(self) -> int | None:
        """As `SamplingFields.num_logprobs`."""
        return self.logprobs

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts; errors as `several`."""
        return several("prompt", self.prompt)


def several(name: str, given: str | list[str | int | list[int]]) -> list[str] | list[list[int]]:
    """One text, several, one list of token ids or several, as a list: all as text or all as token ids.

    Raises:
        RequestError: the parameter called `name` is empty or mixes kinds.
    """
    if isinstance(given, str):
        return [given]
    # One look at each: a body has room for two million of them.
    kinds = set(map(type, given))
    if len(kinds) != 1:
        raise RequestError(
            "invalid_value",
            f"{name}: a list must hold only strings, only token ids or only lists of token ids, and not be empty",
            param=name,
        )
    return cast("list[str] | list[list[int]]", [given] if kinds == {int} else given)


HARMLESS: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "best_of": (None,),
    "echo": (None, False),
    "function_call": (None, "none"),
    "functions": (None, []),
    "metadata": (None, {}),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "prediction": (None,),
    "prompt_cache_key": (None,),
    "prompt_cache_options": (None,),
    "prompt_cache_retention": (None,),
    "reasoning_effort": (None,),
    "safety_identifier": (None,),
    "store": (None, False),
    "suffix": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
}
"""OpenAI's parameters that are not served -> the values that ask for nothing."""

HARMLESS_IN_COMPLETIONS: dict[str, tuple[Any, ...]] = HARMLESS | {
    "parallel_tool_calls": (None, True),
    "response_format": (None, {"type": "text"}),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
}
"""Chats alone have these."""

HARMLESS_IN_MESSAGES: dict[str, tuple[Any, ...]] = {
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "refusal": (None,),
}
"""What clients send back when they repeat an answer of ours as a message."""

ALLOWED = {
    ".role": ", ".join(get_args(Role)),
    "response_format.type": "text, json_object, json_schema",
    "tool_choice": "none, auto, required, or the name of a function",
    "tool_choice.type": "function",
    "tools[].type": "function",
    "tool_calls[].type": "function",
    "content[].type": "text",
    "encoding_format": "float, base64",
    "pooling": "mean, last",
}
"""End of a parameter's path -> its values; what msgspec says of an unknown one does not name them."""

PATH = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?", re.DOTALL)
INDEX = re.compile(r"\[\d+\]")
FIELD = re.compile(r"Object (?P<trouble>contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL)

AnyBody = TypeVar("AnyBody", bound=Body)
AnyStruct = TypeVar("AnyStruct", bound=Struct)


def read_chat(data: bytes) -> ChatBody:
    """The body of a chat request.

    Raises:
        RequestError: bad JSON, or a parameter that is missing, unknown, unsupported or out of bounds.
    """
    fields = read_fields(data)
    drop_harmless(fields, HARMLESS, "")
    messages = fields.get("messages")
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, dict):
            drop_harmless(message, HARMLESS_IN_MESSAGES, f"messages[{index}].")
    body = _convert(fields, ChatBody)
    check_turns(body.messages)
    structure = body.structure()
    if body.ignore_eos and structure.constrains:
        message = (
            "ignore_eos: an answer held to a form ends with it; leave out ignore_eos, or response_format and tools"
        )
        raise RequestError("invalid_value", message, param="ignore_eos")
    if body.max_tokens and body.max_completion_tokens and body.max_tokens != body.max_completion_tokens:
        raise RequestError(
            "invalid_value",
            f"max_tokens ({body.max_tokens}) and max_completion_tokens ({body.max_completion_tokens}) differ; "
            "give one of them",
            param="max_tokens",
        )
    if body.top_logprobs and not body.logprobs:
        raise RequestError("invalid_value", "top_logprobs needs logprobs: true", param="top_logprobs")
    return body


def read_completion(data: bytes) -> CompletionBody:
    """The body of a completion request; errors as `read_chat`."""
    fields = read_fields(data)
    if fields.get("best_of") is not None and fields["best_of"] == (fields.get("n") or 1):
        del fields["best_of"]
    drop_harmless(fields, HARMLESS_IN_COMPLETIONS, "")
    return _convert(fields, CompletionBody)


def read_fields(data: bytes) -> dict[str, Any]:
    """A JSON object; errors as `read_chat`."""
    check_parts(data, "the body")
    try:
        fields = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise RequestError("invalid_json", f"the body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise RequestError("invalid_json", "the body is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise RequestError(
            "invalid_json", f"the body is not valid UTF-8: {error.reason} at byte {error.start}"
        ) from error
    if not isinstance(fields, dict):
        raise RequestError("invalid_type", "the body must be a JSON object")
    return fields


def drop_harmless(fields: dict[str, Any], harmless: Mapping[str, tuple[Any, ...]], where: str) -> None:
    """Take out what asks for nothing; refuse the rest of the table by name."""
    for name in [name for name in fields if name in harmless]:
        value = fields.pop(name)
        # `0 == False` in Python, and `logprobs: 0` asks for something: types must agree too.
        if not any(type(value) is type(allowed) and value == allowed for allowed in harmless[name]):
            allowed = ", ".join(msgspec.json.encode(each).decode() for each in harmless[name])
            raise RequestError(
                "unsupported_parameter",
                f"{where}{name} is not supported here; leave it out, or ask for nothing with: {allowed}",
                param=f"{where}{name}",
            )


def convert(
    fields: dict[str, Any], kind: type[AnyStruct], allowed: Mapping[str, str] = MappingProxyType(ALLOWED)
) -> AnyStruct:
    """Fields as a body; errors as `read_chat`."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise _refusal(str(error), kind, fields, allowed) from error


def _convert(fields: dict[str, Any], kind: type[AnyBody]) -> AnyBody:
    body = convert(fields, kind)
    if body.stream_options is not None and not body.stream:
        raise RequestError("invalid_value", "stream_options needs stream: true", param="stream_options")
    return body


def _refusal(error: str, kind: type[Struct], fields: dict[str, Any], allowed: Mapping[str, str]) -> RequestError:
    """What msgspec found, under the parameter's name as clients write it."""
    match = PATH.fullmatch(error)
    what, path = (match["what"], match["path"] or "") if match else (error, "")
    field = FIELD.fullmatch(what)
    if field is None:
        number = out_of_bounds(kind, fields, path)
        if number:
            return RequestError("invalid_value", f"{path}: {number}", param=path)
        code = "invalid_type" if ", got `" in what else "invalid_value"
        place = INDEX.sub("[]", path)
        values = next((f"; allowed: {text}" for end, text in allowed.items() if place.endswith(end)), "")
        return RequestError(code, f"{path}: {what[:1].lower()}{what[1:]}{values}", param=path)
    name = f"{path}.{field['name']}" if path else field["name"]
    if field["trouble"] == "missing required":
        return RequestError("missing_parameter", f"{name} is required", param=name)
    nearest = (
        [] if path else difflib.get_close_matches(name, [each.encode_name for each in msgspec.structs.fields(kind)], 1)
    )
    hint = f'; did you mean "{nearest[0]}"?' if nearest else ""
    return RequestError("unknown_parameter", f"{name} is not a parameter of this endpoint{hint}", param=name)
