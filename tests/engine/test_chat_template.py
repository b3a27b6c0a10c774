"""Conversations as transformers renders them, by a template that can do nothing but compute."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.chat_template import MAX_SOURCE_CHARACTERS, ChatTemplate
from engine.interface import EngineError
from engine.tokenizer import Tokenizer

CHAT = [{"role": "user", "content": "What is a fairlead?"}]


@pytest.fixture
def checkpoint(demo: Path, tmp_path: Path) -> Path:
    """A copy of the demo checkpoint's text files, to be changed."""
    for file in demo.glob("*.json"):
        shutil.copy(file, tmp_path)
    return tmp_path


def change(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def loaded(folder: Path) -> ChatTemplate:
    template = ChatTemplate.load(folder)
    assert template is not None
    return template


def test_chats_render_as_transformers_renders_them(demo: Path) -> None:
    import transformers

    chat = [{"role": "system", "content": "Be brief."}, *CHAT]
    reference = transformers.AutoTokenizer.from_pretrained(demo)
    wanted = reference.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert loaded(demo).render(chat) == wanted
    tokens = Tokenizer.load(demo).encode(wanted, add_special_tokens=False)
    assert tokens == reference.encode(wanted, add_special_tokens=False)


def test_templates_have_what_transformers_gives_them(checkpoint: Path) -> None:
    template = """
{%- for message in messages %}
    {%- if loop.index0 > 0 %}
        {%- break %}
    {%- endif %}
    {{- eos_token }}{{ message | tojson }}
{% endfor %}
{{ strftime_now("%Y") | length }}{% if tools is defined %}tools{% endif %}"""
    (checkpoint / "chat_template.jinja").write_text(template)
    rendered = loaded(checkpoint).render([{"content": "<é>"}, {"content": "never"}])
    assert rendered == '<|im_end|>{"content": "<é>"}\n4'


TOOL = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object"}}}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"function": {"name": "now", "arguments": {"zone": "UTC"}}}],
}
ANSWERS = [
    {"role": "tool", "content": "noon", "tool_call_id": "a"},
    {"role": "tool", "content": "one", "tool_call_id": "b"},
]


def test_a_template_that_knows_tools_is_given_them(checkpoint: Path) -> None:
    template = """{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}
{%- for message in messages %}{{ message.role }}:{{ message.content }}
{%- for call in message.tool_calls or [] %}{{ call.function.arguments | tojson }}{% endfor %};{% endfor %}"""
    (checkpoint / "chat_template.jinja").write_text(template)
    rendered = loaded(checkpoint).render([*CHAT[:1], CALLED, *ANSWERS], [TOOL])
    assert rendered == f'now {CHAT[0]["role"]}:{CHAT[0]["content"]};assistant:{{"zone": "UTC"}};tool:noon;tool:one;'


def test_a_template_that_knows_no_tools_is_told_of_them_in_turns_it_knows(demo: Path) -> None:
    template = loaded(demo)
    system = {"role": "system", "content": "Be brief."}
    rendered = template.render([system, *CHAT[:1], CALLED, *ANSWERS], [TOOL])
    turns = rendered.split("<|im_start|>")[1:]
    assert [turn.split("\n")[0] for turn in turns] == ["system", "user", "assistant", "user", "assistant"]
    assert "Be brief.\n\n" in turns[0]
    assert '"description": "The time."' in turns[0]
    assert '<tool_call>\n{"name": "now", "arguments": {"zone": "UTC"}}\n</tool_call>' in turns[2]
    assert "<tool_response>\nnoon\n</tool_response>\n<tool_response>\none\n</tool_response>" in turns[3]
    assert template.render(CHAT[:1], [TOOL]).startswith("<|im_start|>system\nYou may call functions.")


def test_of_several_templates_the_default_is_taken(checkpoint: Path) -> None:
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    change(checkpoint / "tokenizer_config.json", chat_template=several)
    assert loaded(checkpoint).render(CHAT) == "yes"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{{ messages.append(1) }}", "refuses these messages"),
        ("{{ ''.__class__.__mro__ }}", "refuses these messages"),
        ("{{ messages[0]['content'] + 1 }}", "refuses these messages"),
    ],
)
def test_a_template_can_refuse_and_cannot_reach_out(template: str, sentence: str, checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text(template)
    with pytest.raises(EngineError, match=sentence):
        loaded(checkpoint).render(CHAT)


def test_a_model_without_a_template_has_none(checkpoint: Path) -> None:
    change(checkpoint / "tokenizer_config.json", chat_template=None)
    assert ChatTemplate.load(checkpoint) is None


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{% for %}", "the chat template cannot be read: Expected an expression"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "the chat template cannot be read"),
        ("x" * (MAX_SOURCE_CHARACTERS + 1), "has 1048577 characters; at most 1048576 are read"),
        (b"\xff", "is no UTF-8 text"),
    ],
)
def test_a_template_that_cannot_be_read_says_why(template: str | bytes, sentence: str, checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_bytes(template if isinstance(template, bytes) else template.encode())
    with pytest.raises(EngineError, match=sentence):
        ChatTemplate.load(checkpoint)


def test_a_template_that_is_no_text_says_so(checkpoint: Path) -> None:
    change(checkpoint / "tokenizer_config.json", chat_template=7)
    with pytest.raises(EngineError, match="chat_template must be a text, not int"):
        ChatTemplate.load(checkpoint)


def test_a_template_that_calls_itself_for_ever_refuses(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}")
    with pytest.raises(EngineError, match="cannot cope with these messages"):
        loaded(checkpoint).render(CHAT)
