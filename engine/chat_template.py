"""Chat templates of checkpoint folders: programs in Jinja that make a prompt of a conversation. Torch-free.

A template can do nothing but compute, in Jinja's sandbox; but it can compute for ever, even while it is compiled. Who
serves others renders in a process that may be ended (`services.gateway.rendering`).
"""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, meta
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.config import read_optional_json
from engine.grammar.hermes import as_plain_messages
from engine.interface import EngineError
from engine.model_folder import read_document

TEMPLATE, SETTINGS = "chat_template.jinja", "tokenizer_config.json"
MAX_SOURCE_CHARACTERS = 2**20
NO_TEMPLATE = "this model has no chat template; send a prompt to /v1/completions instead"


class ChatTemplate:
    """Of one checkpoint."""

    def __init__(self, template: Template, *, knows_tools: bool) -> None:
        self._template = template
        self._knows_tools = knows_tools

    @classmethod
    def load(cls, folder: Path) -> "ChatTemplate | None":
        """The template of a Hugging Face checkpoint folder; None: it has none.

        Raises:
            EngineError: it cannot be read.
        """
        source = read_source(folder)
        if source is None:
            return None
        settings = read_optional_json(folder / SETTINGS)
        # trim_blocks and lstrip_blocks: templates are written for transformers, which renders them so.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        special = {name: token_text(settings[name]) for name in names if settings.get(name)}
        try:
            knows_tools = "tools" in meta.find_undeclared_variables(environment.parse(source))
            return cls(environment.from_string(source, globals=special), knows_tools=knows_tools)
        except (TemplateError, SyntaxError, RecursionError, MemoryError) as error:
            raise EngineError(f"{folder}: the chat template cannot be read: {error or type(error).__name__}") from error

    def render(self, messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> str:
        """The prompt of a conversation, opened for the assistant's turn.

        A template that knows no tools is told of them in a system message of ours, and of calls and their answers in
        the text of the turns, in the form of `engine.grammar.hermes`.

        Raises:
            EngineError: the template refuses these messages.
        """
        if not self._knows_tools:
            messages, tools = as_plain_messages(messages, tools), ()
        try:
            known = {"tools": list(tools)} if tools else {}
            return self._template.render(messages=messages, add_generation_prompt=True, **known)
        except (TemplateError, TypeError, LookupError, AttributeError, ArithmeticError, ValueError) as error:
            raise EngineError(f"the model's chat template refuses these messages: {error}") from error
        except (RecursionError, MemoryError) as error:
            raise EngineError("the model's chat template cannot cope with these messages: they are too much") from error


def read_source(folder: Path) -> str | None:
    """The text of a folder's template; None: it has none.

    Raises:
        EngineError: it is too large, or no text.
    """
    source = read_optional_json(folder / SETTINGS).get("chat_template")
    if isinstance(source, list):  # several named ones
        named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
        source = named.get("default")
    path = folder / TEMPLATE
    if path.exists():
        try:
            source = read_document(path).decode()
        except UnicodeDecodeError as error:
            raise EngineError(f"{path}: is no UTF-8 text") from error
    if source is None:
        return None
    if not isinstance(source, str):
        raise EngineError(f"{folder / SETTINGS}: chat_template must be a text, not {type(source).__name__}")
    if len(source) > MAX_SOURCE_CHARACTERS:
        raise EngineError(
            f"{folder}: the chat template has {len(source)} characters; at most {MAX_SOURCE_CHARACTERS} are read"
        )
    return source


def token_text(token: Any) -> str:
    """A special token is written as its text or as an object with its text in `content`."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _to_json(value: Any, indent: int | None = None) -> str:
    """As transformers renders it: without HTML escapes, characters as they are."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
