"""What changes from one policy to the next, in words: for the log line and the answer to a save."""

from collections.abc import Iterable
from typing import Any

import msgspec

from policies.document.explain import rule_in_words, stage_in_words
from policies.document.explain_limits import limits_in_words
from policies.document.schema import Policy
from policies.document.section import Section


def changes(old: Policy, new: Policy) -> list[str]:
    """One sentence for each knob that differs, in the order of the schema; empty if none does."""
    return list(_changes("", old, new))


def _changes(path: str, old: Any, new: Any) -> Iterable[str]:
    if old == new:
        return
    if isinstance(old, Section) and type(old) is type(new):
        for field in msgspec.structs.fields(old):
            at = f"{path}.{field.encode_name}" if path else field.encode_name
            yield from _changes(at, getattr(old, field.name), getattr(new, field.name))
    elif path == "classes":
        yield from _classes(old, new)
    elif path == "classify":
        yield f"classify: {_sentences(rule_in_words(rule) for rule in new) or 'everything gets the last class'}"
    elif path == "limits":
        yield f"limits: {_sentences(limits_in_words(new))}"
    elif path == "batching.stages":
        yield f"batching.stages: {_sentences(f'{n}. {stage_in_words(stage)}' for n, stage in enumerate(new, 1))}"
    else:
        yield f"{path}: {_value(old)} -> {_value(new)}"


def _classes(old: tuple[Any, ...], new: tuple[Any, ...]) -> Iterable[str]:
    before, after = {one.name: one for one in old}, {one.name: one for one in new}
    for name in before:
        if name not in after:
            yield f"classes[{name}]: removed; its running requests keep its values"
    for name, one in after.items():
        if name not in before:
            yield f"classes[{name}]: added (ttft_s {one.ttft_s:g}, tbt_s {one.tbt_s:g})"
        else:
            yield from _changes(f"classes[{name}]", before[name], one)
    kept_before, kept_after = [n for n in before if n in after], [n for n in after if n in before]
    if kept_before != kept_after:
        yield f"classes: priority is now {', '.join(after)}"


def _sentences(parts: Iterable[str]) -> str:
    return " ".join(parts)


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_value(one) for one in value)}]"
    if isinstance(value, Section):
        return str(msgspec.to_builtins(value))
    return str(value) or "nothing"
