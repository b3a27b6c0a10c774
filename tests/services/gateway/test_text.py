import itertools

import pytest

from services.gateway.text import StopScanner


def scan(stops: list[str], pieces: list[str]) -> tuple[str, str]:
    scanner = StopScanner(stops)
    shown = ""
    for piece in pieces:
        text, stopped = scanner.push(piece)
        shown += text
        if stopped:
            return shown, stopped
    return shown + scanner.finish(), ""


@pytest.mark.parametrize("cuts", list(itertools.combinations(range(1, 9), 2)))
def test_a_stop_string_is_found_however_the_text_is_cut(cuts: tuple[int, int]) -> None:
    text = "abcSTOPde"
    pieces = [text[: cuts[0]], text[cuts[0] : cuts[1]], text[cuts[1] :]]
    assert scan(["STOP"], pieces) == ("abc", "STOP")


def test_text_that_only_began_like_a_stop_string_is_shown_once_that_is_known() -> None:
    scanner = StopScanner(["STOP"])
    assert scanner.push("xST") == ("x", "")
    assert scanner.push("AR") == ("STAR", "")


def test_held_text_is_shown_when_the_output_ends_without_the_stop_string() -> None:
    assert scan(["STOP"], ["xSTO"]) == ("xSTO", "")


@pytest.mark.parametrize(
    ("stops", "text", "shown", "stop"),
    [
        (["aab"], "aaab", "a", "aab"),
        (["abab", "bb"], "ababb", "", "abab"),
        (["b", "abc"], "xabc", "xa", "b"),
        (["bc", "abc"], "xabc", "x", "abc"),
        (["\n\n"], "a\nb\n\nc", "a\nb", "\n\n"),
        (["ö"], "größe", "gr", "ö"),
    ],
)
def test_the_stop_string_completed_first_ends_the_text(stops: list[str], text: str, shown: str, stop: str) -> None:
    assert scan(stops, list(text)) == (shown, stop)
    assert scan(stops, [text]) == (shown, stop)


def test_no_character_of_a_stop_string_leaks_before_it_is_complete() -> None:
    scanner = StopScanner(["END", "NDX"])
    assert [scanner.push(character)[0] for character in "aEN"] == ["a", "", ""]
    assert scanner.push("D") == ("", "END")
