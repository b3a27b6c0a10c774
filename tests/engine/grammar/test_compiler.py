import json
from pathlib import Path
from typing import Any

import pytest

from engine.grammar import compiler as module
from engine.grammar import lark
from engine.grammar.compiler import Compiler, GrammarError

END = frozenset([2])


def refusal(compiler: Compiler, grammar: str) -> str:
    with pytest.raises(GrammarError) as caught:
        compiler.matcher(grammar)
    return str(caught.value)


def test_a_matcher_is_a_fresh_copy_of_what_was_compiled_once(compiler: Compiler) -> None:
    grammar = lark.document({"enum": ["ab"]})
    first = compiler.matcher(grammar)
    compiled = compiler._compiled[grammar]
    assert first.consume_tokens(compiler._tokenizer.tokenize_str('"ab"'))
    second = compiler.matcher(grammar)
    assert first.is_accepting()
    assert not second.is_accepting()
    assert compiler._compiled[grammar] is compiled


def test_what_was_not_used_for_longest_is_forgotten_first(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CACHED", 2)
    for text in ("a", "b", "a", "c"):
        compiler.matcher(f'start: "{text}"')
    assert list(compiler._compiled) == ['start: "a"', 'start: "c"']
    monkeypatch.setattr(module, "MAX_CACHED_BYTES", 20)
    compiler.matcher('start: "d"')
    assert list(compiler._compiled) == ['start: "c"', 'start: "d"']
    assert compiler._num_bytes == 20


def test_a_grammar_that_is_too_long_is_refused_before_it_is_compiled(compiler: Compiler) -> None:
    reason = refusal(compiler, "start: " + " " * module.MAX_GRAMMAR_BYTES)
    assert reason == "its grammar has 131079 characters; at most 131072 are allowed"


def test_a_model_that_names_no_end_has_no_structured_output(tiny: Path) -> None:
    assert "no end-of-sequence token" in refusal(Compiler(tiny, 400, frozenset()), "start: /a/")


def test_a_tokenizer_that_the_library_cannot_read_is_named(tmp_path: Path) -> None:
    model: dict[str, Any] = {"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##"}
    model |= {"max_input_chars_per_word": 9, "vocab": {"a": 0}}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    reason = refusal(Compiler(tmp_path, 400, END), "start: /a/")
    assert reason.startswith(f"{tmp_path}/tokenizer.json cannot be used for structured output: ")


def test_a_schema_cannot_change_how_json_is_written_nor_leave_keywords_out(compiler: Compiler) -> None:
    schema = {"type": "object", "not": {"required": ["a"]}, "x-guidance": {"lenient": True}}
    assert "not" in lark.problem_of(schema)
    assert '"not"' in refusal(compiler, lark.document(schema))


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "strnig"}, "strnig"),
        ({"type": "integer", "minimum": 5, "maximum": 2}, "Unsatisfiable"),
        ({"$ref": "https://example.com/schema"}, "not present in a registry"),
        ({"$ref": "#/$defs/gone"}, "does not exist"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ],
)
def test_what_is_wrong_with_a_schema_is_said(schema: dict[str, Any], problem: str) -> None:
    assert problem in lark.problem_of(schema)
