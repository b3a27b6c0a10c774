"""What the commands read of the recorded traffic, while it is written or after.

Owns finding the files of a data folder. Knows rows; makes nothing of them.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from services.traffic.rows import FLEETS, GATEWAY, REQUESTS, SCHEDULER, STEPS, FleetRow, RequestRow, StepRow
from services.traffic.store import FORMAT, Row, Table, folder


class TrafficError(Exception):
    """What was recorded cannot be read; the sentence names the file."""


class Fleet(NamedTuple):
    """The executors of one scheduler, and how long their steps took."""

    fleet: FleetRow
    steps: list[StepRow]
    """Of it and of those before it that were like it, by time."""


def read_requests(data: str, window_s: float) -> list[RequestRow]:
    """The requests of the last `window_s` seconds of recorded traffic, by arrival, of all gateways.

    Raises:
        TrafficError: a file cannot be read.
    """
    newest = max(
        (row[0] for row in _select(data, GATEWAY, REQUESTS, "SELECT max(unix_s) FROM requests") if row[0]), default=None
    )
    if newest is None:
        return []
    rows = _select(data, GATEWAY, REQUESTS, "SELECT * FROM requests WHERE unix_s >= ?", newest - window_s)
    return sorted((RequestRow(*row) for row in rows), key=lambda row: row.unix_s)


def read_fleet(data: str) -> Fleet | None:
    """The executors last seen and the samples of their steps; None: none was ever seen.

    Raises:
        TrafficError: a file cannot be read.
    """
    seen = sorted((FleetRow(*row) for row in _select(data, SCHEDULER, FLEETS, "SELECT * FROM fleets")), reverse=True)
    if not seen:
        return None
    newest, since = seen[0], seen[0].unix_s
    for fleet in seen[1:]:
        if fleet.description != newest.description:
            break
        since = fleet.unix_s
    steps = _select(data, SCHEDULER, STEPS, "SELECT * FROM steps WHERE unix_s >= ? ORDER BY unix_s", since)
    return Fleet(newest, [StepRow(*row) for row in steps])


def _select(data: str, service: str, table: Table, query: str, *values: float) -> Iterator[Row]:
    for path in sorted(folder(data).glob(f"{service}*.sqlite")):
        yield from _rows_of(path, table, query, values)


def _rows_of(path: Path, table: Table, query: str, values: tuple[float, ...]) -> list[Row]:
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            # A file just made, or one of another version, which its writer will replace.
            if (
                found != FORMAT
                or not connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table.name,)).fetchone()
            ):
                return []
            return connection.execute(query, values).fetchall()
    except sqlite3.Error as error:
        raise TrafficError(f"{path}: the recorded traffic cannot be read: {error}") from error
