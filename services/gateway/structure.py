"""The form that a chat request asks its answer to have: response_format, tools and tool_choice.

Owns these parameters and the grammar they come to. `strict` changes nothing: every schema is enforced, in calls too.
Knows no tokens.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta, Struct, to_builtins

from engine.grammar import lark
from services.errors import RequestError

Name = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]
Schema = dict[str, Any]


class JsonSchema(Struct, forbid_unknown_fields=True):
    """A schema and what the client calls it."""

    name: Name
    schema: Schema
    description: str | None = None
    strict: bool | None = None


class TextFormat(Struct, forbid_unknown_fields=True, tag_field="type", tag="text"):
    """Any text."""


class ObjectFormat(Struct, forbid_unknown_fields=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class SchemaFormat(Struct, forbid_unknown_fields=True, tag_field="type", tag="json_schema"):
    """A JSON document that a schema accepts."""

    json_schema: JsonSchema


ResponseFormat = TextFormat | ObjectFormat | SchemaFormat


class Function(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A function that the model may ask its client to call."""

    name: Name
    description: str | None = None
    parameters: Schema | None = None
    """A JSON schema; None: no arguments."""
    strict: bool | None = None


class Tool(Struct, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """Functions are the only tools."""

    function: Function


class FunctionName(Struct, forbid_unknown_fields=True):
    """Which function."""

    name: str


class NamedTool(Struct, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """A tool_choice of one function."""

    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedTool
NO_ARGUMENTS: Schema = {"type": "object", "properties": {}, "additionalProperties": False}


class ParameterNames(NamedTuple):
    """What an endpoint calls the parameters that this module speaks of."""

    document_schema: str
    tool_schema: str
    """Of one tool."""
    form: str
    """Of an answer that calls no tools."""


OPENAI_NAMES = ParameterNames("response_format.json_schema.schema", "function.parameters", "response_format")


class Structure(NamedTuple):
    """What is asked of an answer's form."""

    response_format: ResponseFormat | None
    tools: Sequence[Tool]
    choice: ToolChoice
    at_most_one_call: bool
    names: ParameterNames = OPENAI_NAMES

    @property
    def at_fault(self) -> str:
        """The parameter that is wrong where the whole form is."""
        return "tools" if self.callable_tools else self.names.form

    @property
    def callable_tools(self) -> list[Tool]:
        """Tools that the answer may call."""
        match self.choice:
            case "none":
                return []
            case NamedTool():
                return [tool for tool in self.tools if tool.function.name == self.choice.function.name]
        return list(self.tools)

    @property
    def constrains(self) -> bool:
        """Not every text will do."""
        return bool(self.callable_tools) or self._schema() is not None

    def for_template(self) -> list[dict[str, Any]]:
        """The callable tools as chat templates expect them."""
        tools: list[dict[str, Any]] = to_builtins(self.callable_tools)
        for tool in tools:
            tool["function"].setdefault("parameters", NO_ARGUMENTS)
            tool["function"].pop("strict", None)  # nothing a model was trained on
        return tools

    def grammar(self) -> str:
        """What the answer must keep to; empty: any text will do.

        Raises:
            RequestError: a schema is nested too deeply to be written down.
        """
        try:
            return self._grammar()
        except RecursionError as error:
            message = f"{self.at_fault}: a schema is nested too deeply"
            raise RequestError("invalid_value", message, param=self.at_fault) from error

    def _grammar(self) -> str:
        functions = [lark.Function(tool.function.name, _parameters(tool)) for tool in self.callable_tools]
        schema = self._schema()
        if not functions:
            return "" if schema is None else lark.document(schema)
        if self.choice != "auto":
            return lark.calls(functions, at_most_one=self.at_most_one_call)
        if schema is None:
            return lark.text_or_calls(functions, at_most_one=self.at_most_one_call)
        return lark.document_or_calls(schema, functions, at_most_one=self.at_most_one_call)

    def schemas(self) -> Iterator[tuple[str, Schema]]:
        """Each schema that the client wrote, with its parameter's name."""
        if isinstance(self.response_format, SchemaFormat):
            yield self.names.document_schema, self.response_format.json_schema.schema
        for index, tool in enumerate(self.tools):
            if tool.function.parameters is not None:
                yield f"tools[{index}].{self.names.tool_schema}", tool.function.parameters

    def _schema(self) -> Schema | None:
        match self.response_format:
            case ObjectFormat():
                return dict(lark.ANY_OBJECT)
            case SchemaFormat():
                return self.response_format.json_schema.schema
        return None


ANY_TEXT = Structure(None, (), "none", at_most_one_call=False)


def read_structure(
    response_format: ResponseFormat | None,
    tools: Sequence[Tool],
    choice: ToolChoice | None,
    parallel_tool_calls: bool | None,
    names: ParameterNames = OPENAI_NAMES,
) -> Structure:
    """What these parameters come to together.

    Raises:
        RequestError: a name stands twice, or the choice is of a tool that is not there.
    """
    functions = [tool.function.name for tool in tools]
    twice = next((name for name, count in Counter(functions).items() if count > 1), None)
    if twice is not None:
        raise RequestError("invalid_value", f'tools: two functions are called "{twice}"', param="tools")
    if choice == "required" and not tools:
        raise RequestError(
            "invalid_value",
            "tool_choice: a call is required, but there are no tools to choose from",
            param="tool_choice",
        )
    if isinstance(choice, NamedTool) and choice.function.name not in functions:
        known = ", ".join(functions) or "none"
        message = f'tool_choice: there is no function "{choice.function.name}" among the tools; there are: {known}'
        raise RequestError("invalid_value", message, param="tool_choice")
    one = parallel_tool_calls is False or isinstance(choice, NamedTool)
    return Structure(response_format, tools, choice or "auto", one, names)


def _parameters(tool: Tool) -> Schema:
    return NO_ARGUMENTS if tool.function.parameters is None else tool.function.parameters
