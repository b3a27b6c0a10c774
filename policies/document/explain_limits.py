"""The limits of a policy in words.

A part of `explain.py`.
"""

from policies.document.limit_rules import AT_ONCE, size_of
from policies.document.limits import Limit, LimitMatch

WHO = {
    "key": "Each key",
    "project": "Each project",
    "tenant": "Each tenant",
    "class": "Each class",
    "model": "All requests together",
}
WHAT = {
    "requests": "requests",
    "prompt_tokens": "prompt tokens",
    "output_tokens": "output tokens",
    "total_tokens": "tokens of prompts and outputs",
    "concurrency": "unfinished requests",
    "queued": "waiting requests",
}


def limits_in_words(limits: tuple[Limit, ...]) -> list[str]:
    """One sentence for each limit."""
    return [limit_in_words(limit) for limit in limits] or ["No limits on single tenants."]


def limit_in_words(limit: Limit) -> str:
    """One limit as a sentence."""
    size, period_s = size_of(limit)
    if limit.dimension in AT_ONCE:
        most = f"{size} {WHAT[limit.dimension]} at once"
    else:
        most = f"{size} {WHAT[limit.dimension]} a {'minute' if period_s == 60 else 'day'}{_pace(limit, size)}"
    saturated = " while requests wait" if limit.mode == "only_when_saturated" else ""
    return f"{WHO[limit.scope]}{_whose(limit.when)}: at most {most}{saturated}."


def _pace(limit: Limit, size: int) -> str:
    if limit.algorithm == "sliding_log":
        return ", counted back from now"
    return f", {limit.burst or size} at once"


def _whose(when: LimitMatch | None) -> str:
    if when is None:
        return ""
    fields = (("tier", when.tier), ("tenant", when.tenant), ("class", when.class_))
    return f" ({', '.join(f'{name} {value}' for name, value in fields if value is not None)})"
