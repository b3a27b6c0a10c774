"""What must hold between the knobs of `limits`.

A part of `rules.py`, which says how a rule speaks.
"""

from typing import Any

from msgspec import UNSET

from policies.document.limits import Limit, LimitMatch
from policies.document.problems import nearest
from policies.document.reading import Path, Reading
from policies.document.words import listed

LIMITS: Path = ("limits",)
AT_ONCE = ("concurrency", "queued")
"""Dimensions that count what is there, not what is taken over time."""
SHARED = ("class", "model")
"""Scopes that several tenants share."""
MOST_LOGGED = 5_000
"""Requests in a sliding log. Each costs admission 2 us whenever the log is kept, perhaps 50 times a second."""
RATES = {"rate_per_min": 60, "rate_per_day": 86_400}
"""Knobs that give a rate, and their period in seconds."""


def check_limits(reading: Reading) -> None:
    """Add every problem between the knobs of `limits`."""
    limits = [reading.get((*LIMITS, index)) for index in range(reading.length(LIMITS))]
    for index, limit in enumerate(limits):
        if limit is not UNSET:
            path = (*LIMITS, index)
            _size_fits_dimension(reading, path, limit)
            _match_says_something(reading, path, limit)
            _match_names_a_class(reading, path, limit.when)
            _is_reached(reading, path, limit, limits[:index])


def size_of(limit: Limit) -> tuple[int, int]:
    """How much, and in how many seconds; of what is counted at once, 60 s that nobody reads."""
    for name, period_s in RATES.items():
        value: int | None = getattr(limit, name)
        if value is not None:
            return value, period_s
    return limit.max or 0, 60


def _size_fits_dimension(reading: Reading, path: Path, limit: Limit) -> None:
    rates = [name for name in RATES if getattr(limit, name) is not None]
    if limit.dimension in AT_ONCE:
        for name in (*RATES, "burst", "algorithm"):
            if getattr(limit, name) is not None:
                wrong = f"{limit.dimension} is a count of what is there at once, so it has no {name}"
                reading.add((*path, name), wrong, "remove it, and give max")
        if limit.max is None and not rates:
            reading.add(path, f"a limit of {limit.dimension} says how many with max", "add max: COUNT")
        return
    if limit.max is not None:
        wrong = f"{limit.dimension} are taken over time, so they have no max"
        reading.add((*path, "max"), wrong, "use rate_per_min or rate_per_day, or limit concurrency or queued")
    elif not rates:
        wrong = f"a limit of {limit.dimension} needs a rate"
        reading.add(path, wrong, "add rate_per_min or rate_per_day")
    if len(rates) > 1:
        reading.add((*path, rates[1]), f"{rates[0]} is given too", "one limit has one period: list two limits")
    if limit.algorithm == "sliding_log" and limit.burst is not None:
        wrong = "a sliding log has no burst, it may be filled at once"
        reading.add((*path, "burst"), wrong, "remove it, or choose gcra or token_bucket")
    if limit.algorithm == "sliding_log" and limit.dimension == "requests" and rates and size_of(limit)[0] > MOST_LOGGED:
        wrong = (
            f"a sliding log remembers each request of its period and keeps all of them at each change: {MOST_LOGGED}"
        )
        reading.add((*path, rates[0]), f"{wrong} at most", "lower it, or choose gcra, which remembers one number")


def _match_says_something(reading: Reading, path: Path, limit: Limit) -> None:
    when = limit.when
    if when is None:
        return
    if when == LimitMatch():
        reading.add((*path, "when"), "it matches everybody", "name a tier, a tenant or a class, or remove it")
    if limit.scope in SHARED:
        for name in ("tier", "tenant"):
            if getattr(when, name) is not None:
                wrong = f"a limit of scope {limit.scope} is shared by all tenants, so it cannot depend on the {name}"
                reading.add((*path, "when", name), wrong, "remove it, or use scope: tenant, project or key")


def _match_names_a_class(reading: Reading, path: Path, when: LimitMatch | None) -> None:
    names = [reading.get(("classes", index, "name")) for index in range(reading.length(("classes",)))]
    if when is None or when.class_ is None or UNSET in names or when.class_ in names:
        return
    wrong = f'there is no class "{when.class_}"'
    reading.add((*path, "when", "class"), wrong, f"allowed: {listed(names)}", nearest(when.class_, names))


def _is_reached(reading: Reading, path: Path, limit: Limit, earlier: list[Any]) -> None:
    for index, other in enumerate(earlier):
        if other is not UNSET and _alike(other) == _alike(limit) and _covers(other.when, limit.when):
            wrong = f"no request is held to this limit, limits[{index}] takes all that it would match"
            reading.add(path, wrong, "put the narrower limit first, or remove one")
            return


def _alike(limit: Limit) -> tuple[object, ...]:
    return limit.scope, limit.dimension, size_of(limit)[1], limit.mode


def _covers(wider: LimitMatch | None, narrower: LimitMatch | None) -> bool:
    if wider is None or narrower is None:
        return wider is None
    return all(getattr(wider, name) in (None, getattr(narrower, name)) for name in ("tier", "tenant", "class_"))
