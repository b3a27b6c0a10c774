"""Grammars of tool calls accept the one form of calls and nothing else."""

from collections.abc import Callable

import pytest

from engine.grammar import lark
from engine.grammar.compiler import Compiler
from engine.grammar.hermes import call_text

CITY = {
    "$ref": "#/$defs/city",
    "$defs": {"city": {"type": "object", "properties": {"city": {"enum": ["Paris", "}\n"]}}}},
}
CITY["$defs"]["city"] |= {"required": ["city"], "additionalProperties": False}
FUNCTIONS = [lark.Function("weather", CITY), lark.Function("now", {"type": "object", "additionalProperties": False})]
WEATHER, NOW = call_text("weather", {"city": "Paris"}), call_text("now", {})


@pytest.fixture
def accepts(compiler: Compiler) -> Callable[[str, str], bool]:
    """Whether an output of this text may end there."""

    def accept(grammar: str, text: str) -> bool:
        matcher = compiler.matcher(grammar)
        assert compiler._tokenizer is not None
        tokens = compiler._tokenizer.tokenize_str(text)
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()

    return accept


def test_the_form_of_a_call() -> None:
    assert WEATHER == '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        (WEATHER, True),
        (f"{NOW}\n{WEATHER}\n{NOW}", True),
        (call_text("weather", {"city": "}\n"}), True),
        (f"Hello {NOW}", False),
        (f"{NOW} and so on", False),
        (f"{NOW}{NOW}", False),
        ("", False),
        (call_text("weather", {}), False),
        (call_text("weather", {"city": "Rome"}), False),
        (call_text("sleep", {}), False),
        (WEATHER.removesuffix("\n</tool_call>"), False),
    ],
)
def test_required_calls(text: str, accepted: bool, accepts: Callable[[str, str], bool]) -> None:
    assert accepts(lark.calls(FUNCTIONS, at_most_one=False), text) is accepted


def test_where_one_call_is_asked_for_a_second_is_not_allowed(accepts: Callable[[str, str], bool]) -> None:
    for grammar in (
        lark.calls(FUNCTIONS, at_most_one=True),
        lark.text_or_calls(FUNCTIONS, at_most_one=True),
        lark.document_or_calls({"enum": [1]}, FUNCTIONS, at_most_one=True),
    ):
        assert accepts(grammar, WEATHER)
        assert not accepts(grammar, f"{WEATHER}\n{WEATHER}")


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("", True),
        ("Hello <tool_calls> <tool_cal", True),
        (f"Let me look.\n\n{WEATHER}", True),
        (f"{WEATHER}\n{NOW}", True),
        ("<tool_call> is how calls begin", False),
        (f"{WEATHER} Then I", False),
        ('<tool_call>\n{"name": "weather"', False),
    ],
)
def test_text_or_calls(text: str, accepted: bool, accepts: Callable[[str, str], bool]) -> None:
    assert accepts(lark.text_or_calls(FUNCTIONS, at_most_one=False), text) is accepted


@pytest.mark.parametrize(
    ("text", "accepted"), [("[1, 2]", True), (NOW, True), ("[1,2]", False), (f"[1, 2]{NOW}", False)]
)
def test_a_document_or_calls(text: str, accepted: bool, accepts: Callable[[str, str], bool]) -> None:
    schema = {"type": "array", "items": {"type": "integer"}}
    assert accepts(lark.document_or_calls(schema, FUNCTIONS, at_most_one=False), text) is accepted
