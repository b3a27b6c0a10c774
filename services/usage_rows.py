"""What is counted of each tenant's day, and how it is shown.

Knows names and sums; does not know where they are kept.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

PROMPT, CACHED, OUTPUT, REQUESTS = "prompt_tokens", "cached_tokens", "output_tokens", "requests"
REFUSED = "refused:"
"""Before the code of a refusal."""
KEEP_DAYS = 400
"""A year's bill, and some time to dispute it."""


def day_of(unix_s: float) -> str:
    """The day (UTC) of a moment, as usage is counted by."""
    return datetime.fromtimestamp(unix_s, UTC).date().isoformat()


def first_day(today: str, num_days: int) -> str:
    """The first of so many days that end with today."""
    return (datetime.fromisoformat(today) - timedelta(days=num_days - 1)).date().isoformat()


def as_document(rows: Iterable[tuple[str, str, dict[str, int]]]) -> dict[str, Any]:
    """Rows (day, tenant, counts) as they are answered to whoever asks, JSON-able."""
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
