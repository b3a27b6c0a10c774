"""Usage by tenant and day: what is counted, how the embedded store keeps it, and how it is shown.

Knows names and sums; does not know who counts, nor other stores.
"""

import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

PROMPT, CACHED, OUTPUT, REQUESTS = "prompt_tokens", "cached_tokens", "output_tokens", "requests"
REFUSED = "refused:"
"""Before the code of a refusal."""
INVALID = "invalid_request"
"""Stands for the codes of requests that cannot be served to anybody: those that a gateway answers with a 400."""
KEEP_DAYS = 400
"""On which something was used: a year's bill, and some time to dispute it."""
FILE = "admission.sqlite"
"""The embedded store, in the data folder."""
TABLE = """
CREATE TABLE IF NOT EXISTS usage (day TEXT, tenant TEXT, counted TEXT, amount INTEGER NOT NULL,
                                  PRIMARY KEY (day, tenant, counted)) WITHOUT ROWID;
"""


class UsageError(Exception):
    """Usage cannot be read; the sentence says where and why."""


class UsageRow(NamedTuple):
    """What one tenant has used on one day."""

    day: str
    """UTC, `2026-01-31`."""
    tenant: str
    counts: dict[str, int]
    """By name."""


def day_of(unix_s: float) -> str:
    """The day (UTC) of a moment, as usage is counted by."""
    return datetime.fromtimestamp(unix_s, UTC).date().isoformat()


def first_day(today: str, num_days: int) -> str:
    """The first of so many days that end with today."""
    return (datetime.fromisoformat(today) - timedelta(days=num_days - 1)).date().isoformat()


def read_usage(path: Path, tenant: str, num_days: int) -> list[UsageRow]:
    """Usage of a tenant (empty: of each) in the last days, today included, by day, then tenant. Admission may be
    writing the file. No file yet: no usage.

    Raises:
        UsageError: it cannot be read.
    """
    if not path.exists():
        return []
    since = first_day(day_of(time.time()), num_days)
    found: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            for day, name, counted, amount in connection.execute(
                "SELECT day, tenant, counted, amount FROM usage WHERE day >= ? AND (? = '' OR tenant = ?)"
                " ORDER BY day, tenant, counted",
                (since, tenant, tenant),
            ):
                found[day, name][counted] = amount
    except sqlite3.Error as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    return [UsageRow(day, name, counts) for (day, name), counts in found.items()]


def as_document(rows: Iterable[tuple[str, str, dict[str, int]]]) -> dict[str, Any]:
    """Rows as they are answered to whoever asks, JSON-able."""
    return {
        "usage": [
            {
                "day": day,
                "tenant": tenant,
                **{name: counts.get(name, 0) for name in (PROMPT, CACHED, OUTPUT, REQUESTS)},
                "refusals": {
                    name.removeprefix(REFUSED): count for name, count in counts.items() if name.startswith(REFUSED)
                },
            }
            for day, tenant, counts in rows
        ]
    }
