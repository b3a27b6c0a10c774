"""Calls are found wherever the text is cut into pieces."""

import random

import pytest

from engine.grammar.hermes import call_text
from services.gateway.calls import CallArguments, CallBegun, CallReader, Piece, Said
from services.gateway.shapes import whole_calls

WEATHER = call_text("weather", {"city": '</tool_call> "Paris" }\n'})
TIME = call_text("now", {})


def read(text: str, cuts: list[int]) -> list[Piece]:
    reader = CallReader("call_")
    ends = [*cuts, len(text)]
    pieces = [piece for start, end in zip([0, *cuts], ends, strict=True) for piece in reader.push(text[start:end])]
    return pieces + reader.finish()


@pytest.mark.parametrize("said", ["", "Let me look.\n", "<tool_cal", "a <tool_call>b", "\n\n", "one\n<tool_calls>"])
def test_text_and_calls_are_told_apart_for_every_cut(said: str) -> None:
    text = f"{said}\n{WEATHER}\n{TIME}"
    source = random.Random(1)  # noqa: S311
    every = [[cut] for cut in range(len(text))] + [sorted(source.choices(range(len(text)), k=9)) for _ in range(200)]
    for cuts in [[], list(range(1, len(text))), *every]:
        spoken, calls = whole_calls(read(text, cuts))
        assert spoken == said
        assert [(call.function.name, call.function.arguments) for call in calls] == [
            ("weather", '{"city": "</tool_call> \\"Paris\\" }\\n"}'),
            ("now", "{}"),
        ]
        assert calls[0].id != calls[1].id


def test_arguments_come_as_they_are_written() -> None:
    reader = CallReader("call_")
    assert reader.push("<tool_call>\n") == []
    begun = reader.push('{"name": "weather", "arguments": ')
    assert [(piece.number, piece.name) for piece in begun if isinstance(piece, CallBegun)] == [(0, "weather")]
    assert reader.push('{"city"') == [CallArguments(0, '{"city"')]
    assert reader.push(': {"a": 1}') == [CallArguments(0, ': {"a": 1')]  # the brace may close the call
    assert reader.push("}") == [CallArguments(0, "}")]
    assert reader.push("}\n</tool_call>") == [CallArguments(0, "}")]
    assert reader.finish() == []


def test_what_is_cut_off_is_told_as_far_as_it_is_known() -> None:
    assert read("Hello <tool_", []) == [Said("Hello "), Said("<tool_")]
    assert read('<tool_call>\n{"name": "wea', []) == []
    assert whole_calls(read(f"{TIME}\n{WEATHER[:-20]}", []))[1][1].function.name == "weather"
