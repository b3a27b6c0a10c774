"""What is left of a caller's limits and where its request waits, as headers of three dialects.

Pure: states and times in, headers out. OpenAI's and Anthropic's names as their documentations list them;
`RateLimit-Policy` and `RateLimit` after draft-ietf-httpapi-ratelimit-headers-10 (lists of structured fields, RFC 9651).
A limit that is off has no header.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from policies.admission.limits.items import LimitState

Headers = dict[str, str]

NAMES = {
    "requests": "requests",
    "prompt_tokens": "input-tokens",
    "output_tokens": "output-tokens",
    "total_tokens": "tokens",
    "concurrency": "concurrency",
    "queued": "queued",
}
"""Dimension -> its name in headers."""
GAUGES = ("concurrency", "queued")
"""Dimensions that count what is there now: they have no period, and are full again when their requests have ended."""
OPENAI_NAMES = ("requests", "tokens")
ANTHROPIC_NAMES = ("requests", "tokens", "input-tokens", "output-tokens")
MINUTE_S, HOUR_S = 60, 3600


def openai_limits(states: Sequence[LimitState], told_unix_s: float, now_unix_s: float) -> Headers:
    """`x-ratelimit-*` and the draft's, of limits as they were at `told_unix_s`."""
    headers = {}
    for name, state in _shown(states, OPENAI_NAMES):
        headers[f"x-ratelimit-limit-{name}"] = str(state.limit)
        headers[f"x-ratelimit-remaining-{name}"] = str(_left(state))
        headers[f"x-ratelimit-reset-{name}"] = duration(_full_in_s(state, told_unix_s, now_unix_s))
    return headers | _draft(states, told_unix_s, now_unix_s)


def anthropic_limits(states: Sequence[LimitState], told_unix_s: float, now_unix_s: float) -> Headers:
    """`anthropic-ratelimit-*` and the draft's, of limits as they were at `told_unix_s`."""
    headers = {}
    for name, state in _shown(states, ANTHROPIC_NAMES):
        head = f"anthropic-ratelimit-{name}"
        full = datetime.fromtimestamp(math.ceil(told_unix_s + state.full_in_s), UTC)
        headers[f"{head}-limit"] = str(state.limit)
        headers[f"{head}-remaining"] = str(_left(state))
        headers[f"{head}-reset"] = full.strftime("%Y-%m-%dT%H:%M:%SZ")
    return headers | _draft(states, told_unix_s, now_unix_s)


def queue_place(position: int | None, wait_s: float | None) -> Headers:
    """Where a request stood in the queue, and how long that took or is expected to take."""
    headers = {}
    if position is not None:
        headers["x-queue-position"] = str(position)
    if wait_s is not None:
        headers["x-queue-wait-ms"] = str(_milliseconds(wait_s))
    return headers


def duration(seconds: float) -> str:
    """As OpenAI writes it: `0s`, `12ms`, `1.5s`, `6m0s`, `24h0m0s`; rounded up to milliseconds."""
    milliseconds = _milliseconds(seconds)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    whole, milliseconds = divmod(milliseconds, 1000)
    hours, minutes = divmod(whole // MINUTE_S, MINUTE_S)
    fraction = f".{milliseconds:03d}".rstrip("0") if milliseconds else ""
    text = f"{whole % MINUTE_S}{fraction}s"
    if whole >= MINUTE_S:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if whole >= HOUR_S else text


def _shown(states: Sequence[LimitState], names: Sequence[str]) -> list[tuple[str, LimitState]]:
    """For each name the limit that binds first.

    Of several scopes with the same period that is the one with the least left; of several periods the one with the
    smallest share left, because a hundred of a day's ten thousand are sooner gone than fifty of a minute's sixty.
    """
    shown = []
    for name in names:
        least: dict[int, LimitState] = {}
        for state in states:
            if NAMES[state.dimension] == name:
                known = least.get(state.period_s)
                least[state.period_s] = state if known is None else min(known, state, key=_left)
        if least:
            shown.append((name, min(least.values(), key=lambda state: _left(state) / max(1, state.limit))))
    return shown


def _draft(states: Sequence[LimitState], told_unix_s: float, now_unix_s: float) -> Headers:
    if not states:
        return {}
    of_dimension = Counter(state.dimension for state in states)
    policies, lefts = [], []
    for state in states:
        gauge = state.dimension in GAUGES
        # The bare name where it says all; names must differ where one dimension has several limits.
        name = NAMES[state.dimension]
        if of_dimension[state.dimension] > 1:
            name = f"{name}-{state.scope}" if gauge else f"{name}-{state.scope}-{state.period_s}s"
        policies.append(f'"{name}";q={state.limit}' + ("" if gauge else f";w={state.period_s}"))
        full_in_s = math.ceil(_full_in_s(state, told_unix_s, now_unix_s))
        lefts.append(f'"{name}";r={_left(state)}' + ("" if gauge else f";t={full_in_s}"))
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(lefts)}


def _left(state: LimitState) -> int:
    return max(0, state.remaining)


def _full_in_s(state: LimitState, told_unix_s: float, now_unix_s: float) -> float:
    return max(0.0, state.full_in_s - max(0.0, now_unix_s - told_unix_s))


def _milliseconds(seconds: float) -> int:
    """Rounded up; through whole nanoseconds, so that a binary fraction just above does not count."""
    return -(-round(seconds * 1e9) // 10**6)


LimitHeaders = Callable[[Sequence[LimitState], float, float], Headers]
