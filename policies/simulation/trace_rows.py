"""Lines of a CSV trace, and the fields in them.

Owns the checks of single fields. Does not know which columns a trace has.
"""

import re
from collections.abc import Iterator
from math import inf
from typing import NamedTuple

import numpy as np

from policies.scheduling.prefixes import KEY_BYTES
from policies.simulation.trace_request import TraceError

MOMENT = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)[ T](?P<time>\d\d:\d\d:\d\d)(?P<fraction>\.\d+)?"
    r"(?:Z|(?P<sign>[+-])(?P<hours>\d\d):?(?P<minutes>\d\d))?"
)


class Row(NamedTuple):
    """The wanted fields of a line, and where it stands."""

    fields: list[str]
    names: tuple[str, ...]
    place: str

    def tokens(self, column: int) -> int:
        """A count of tokens.

        Raises:
            TraceError: it is not a whole number above 0.
        """
        try:
            value = int(self.fields[column])
        except ValueError:
            value = 0
        if value < 1:
            raise self.error(column, "a whole number of tokens, at least 1")
        return value

    def seconds(self, column: int) -> float:
        """A time since the trace's start.

        Raises:
            TraceError: it is not a number from 0 on.
        """
        try:
            value = float(self.fields[column])
        except ValueError:
            value = -1.0
        if not 0.0 <= value < inf:
            raise self.error(column, "seconds since the trace's start, 0 or more")
        return value

    def moment(self, column: int) -> float:
        """A date and time, as seconds since 1970; without an offset it is taken as UTC.

        Raises:
            TraceError: it is none.
        """
        match = MOMENT.fullmatch(self.fields[column])
        try:
            whole_s = int(np.datetime64(f"{match['day']}T{match['time']}", "s").astype(np.int64)) if match else None
        except ValueError:
            whole_s = None
        if match is None or whole_s is None:
            raise self.error(column, "a date and time like 2023-11-16 18:15:46.68")
        offset_s = 60 * (60 * int(match["hours"] or 0) + int(match["minutes"] or 0))
        return whole_s + float(f"0{match['fraction'] or ''}") - (-offset_s if match["sign"] == "-" else offset_s)

    def keys(self, column: int, num_keys: int) -> bytes:
        """That many keys.

        Raises:
            TraceError: it is not hexadecimal, or has another length.
        """
        try:
            value = bytes.fromhex(self.fields[column])
        except ValueError:
            value = b""
        if len(value) != num_keys * KEY_BYTES:
            raise self.error(column, f"{num_keys * KEY_BYTES} bytes in hexadecimal, {KEY_BYTES} for each key")
        return value

    def error(self, column: int, wanted: str) -> TraceError:
        """What is wrong with a field."""
        return TraceError(f"{self.place}: {self.names[column]} is `{self.fields[column]}`; it must be {wanted}")


def has(header: list[str], names: tuple[str, ...]) -> bool:
    """Whether a header has all these columns."""
    return all(name in header for name in names)


def table(rows: Iterator[list[str]], header: list[str], names: tuple[str, ...], file: str) -> Iterator[Row]:
    """The lines after the header, with the columns of these names; empty lines are passed over.

    Raises:
        TraceError: a line has another number of fields than the header, or there is no line.
    """
    columns = [header.index(name) for name in names]
    found = False
    for line, row in enumerate(rows, start=2):
        if not row:
            continue
        found = True
        if len(row) != len(header):
            raise TraceError(f"{file}:{line}: {len(row)} fields; the header has {len(header)}")
        yield Row([row[column].strip() for column in columns], names, f"{file}:{line}")
    if not found:
        raise TraceError(f"{file}: there is no request in this trace")
