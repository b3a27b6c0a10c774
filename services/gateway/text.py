"""The text of one output: tokens in, characters that may be shown out.

Owns stop strings and what is held back for them; characters split over tokens are the tokenizer's matter.
"""

from collections.abc import Sequence

from engine.tokenizer import TextStream


class StopScanner:
    """Finds the first stop string to be completed in a text that comes in pieces (Knuth, Morris and Pratt).

    Text that may be the beginning of a stop string is held back until it is known not to be. The work is linear in
    the text, however the stop strings are built.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._borders = [_borders(stop) for stop in stops]
        self._matched = [0] * len(self._stops)
        """Per stop string: how many of its characters the text read so far ends with."""
        self._firsts = frozenset(stop[0] for stop in stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, str]:
        """The text that may be shown, and the stop string that was completed, if any (the rest is then discarded)."""
        if not self._held and self._firsts.isdisjoint(text):
            return text, ""
        whole = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            completed = self._advance(character)
            if completed:
                self._held = ""
                return whole[: end - len(completed)], completed
        hold = max(self._matched)
        self._held = whole[len(whole) - hold :]
        return whole[: len(whole) - hold], ""

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str:
        """The longest stop string that this character completes, if any."""
        completed = ""
        for index, stop in enumerate(self._stops):
            length = self._matched[index]
            while length and stop[length] != character:
                length = self._borders[index][length - 1]
            if stop[length] == character:
                length += 1
            if length == len(stop):
                completed = max(completed, stop, key=len)
                length = self._borders[index][length - 1]
            self._matched[index] = length
        return completed


class StoppingText:
    """A `TextStream` whose text ends before the first stop string."""

    def __init__(self, stream: TextStream, stops: Sequence[str]) -> None:
        self._stream = stream
        self._scanner = StopScanner(stops)

    def push(self, token: int) -> tuple[str, str]:
        """The text that may be shown after this token, and the stop string that it completed, if any."""
        return self._scanner.push(self._stream.push(token))

    def finish(self) -> str:
        """What may be shown when no more tokens come."""
        text, stopped = self._scanner.push(self._stream.finish())
        return text if stopped else text + self._scanner.finish()


def _borders(pattern: str) -> list[int]:
    """For each prefix the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(pattern)
    length = 0
    for index in range(1, len(pattern)):
        while length and pattern[index] != pattern[length]:
            length = borders[length - 1]
        if pattern[index] == pattern[length]:
            length += 1
        borders[index] = length
    return borders
