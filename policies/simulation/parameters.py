"""`NAME?key=value&key=value`: how a workload or a device is asked for with other numbers than its own.

Owns that form and its errors. Knows neither workloads nor devices.
"""

from collections.abc import Sequence
from urllib.parse import parse_qsl


class ParameterError(ValueError):
    """A parameter that cannot be used; the sentence names it and what is accepted."""


class Parameters:
    """What follows the question mark. Each is taken once; `finish` refuses what nobody took."""

    def __init__(self, text: str) -> None:
        """`text`: the whole name.

        Raises:
            ParameterError: it does not have that form, or says something twice.
        """
        self.name, mark, query = text.partition("?")
        self._whole = text
        self._known: list[str] = []
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(mark))
        except ValueError as error:
            raise self._error("after the question mark come key=value pairs, separated by &") from error
        self._values: dict[str, str] = {}
        for key, value in pairs:
            if key in self._values:
                raise self._error(f"{key} is given twice")
            self._values[key] = value

    def number(self, key: str, default: float, *, above: float = 0.0, most: float = float("inf")) -> float:
        """A number greater than `above` and at most `most`.

        Raises:
            ParameterError: it is none.
        """
        self._known.append(key)
        text = self._values.pop(key, None)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not above < value <= most or value == float("inf"):
            bounds = f"above {above:g}" if most == float("inf") else f"above {above:g} and at most {most:g}"
            raise self._error(f"{key} is `{text}`; it must be a number {bounds}")
        return value

    def whole(self, key: str, default: int) -> int:
        """A whole number from 1 on.

        Raises:
            ParameterError: it is none.
        """
        value = self.number(key, default)
        if value != int(value):
            raise self._error(f"{key} is `{value:g}`; it must be a whole number")
        return int(value)

    def choice(self, key: str, names: Sequence[str]) -> str:
        """One of these names; the first where nothing is said.

        Raises:
            ParameterError: it is none of them.
        """
        self._known.append(key)
        value = self._values.pop(key, names[0])
        if value not in names:
            raise self._error(f"{key} is `{value}`; it must be one of {', '.join(names)}")
        return value

    def finish(self) -> None:
        """Everything that is known has been asked for.

        Raises:
            ParameterError: something was said that nobody asked for.
        """
        for key in self._values:
            known = f"it takes {', '.join(self._known)}" if self._known else "it takes none"
            raise self._error(f"there is no parameter `{key}`; {known}")

    def _error(self, sentence: str) -> ParameterError:
        return ParameterError(f"{self._whole}: {sentence}")
