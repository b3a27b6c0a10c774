"""Schema types in words: what an error message says is allowed."""

from collections.abc import Iterable
from typing import Any

from msgspec import inspect


def allowed(kind: inspect.Type, extra: dict[str, Any] | None = None) -> str:
    """What a value of this type may be: its kind, unit and bounds.

    Args:
        kind: a type of the schema, as msgspec.inspect describes it.
        extra: the `extra` of the Meta around it (`unit`, `words`).
    """
    extra = extra or {}
    match kind:
        case inspect.Metadata(type=inner):
            return allowed(inner, {**extra, **(kind.extra or {})})
        case inspect.IntType():
            return _number("a whole number", kind, extra)
        case inspect.FloatType():
            return _number("a number", kind, extra)
        case inspect.StrType():
            return str(extra.get("words", f"text of the form {kind.pattern}" if kind.pattern else "text"))
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType(values=values):
            return listed(values) if len(values) == 1 else f"one of {listed(values)}"
        case inspect.VarTupleType(item_type=item, min_length=least):
            return f"a list of {f'at least {least} of ' if least else ''}({allowed(item)})"
        case inspect.DictType(value_type=value):
            return f"a mapping of names to ({allowed(value)})"
        case inspect.StructType(fields=fields, tag=str(tag), tag_field=str(tag_field)):
            return (
                f"a mapping with the keys {listed([f'{tag_field}: {tag}', *(field.encode_name for field in fields)])}"
            )
        case inspect.StructType(fields=fields):
            return f"a mapping with the keys {listed(field.encode_name for field in fields)}"
        case inspect.UnionType(types=types):
            kinds = [one for one in types if not isinstance(one, inspect.NoneType)]
            return " or ".join(allowed(one, extra) for one in kinds)
        case _:
            return "nothing"


def listed(names: Iterable[object]) -> str:
    """Names after one another, in their order."""
    return ", ".join(str(name) for name in names)


def bounds(kind: inspect.IntType | inspect.FloatType) -> list[str]:
    """The bounds of a number, each in words."""
    rows = (("at least", kind.ge), ("above", kind.gt), ("at most", kind.le), ("below", kind.lt))
    return [f"{words} {bound:g}" for words, bound in rows if bound is not None]


def within(kind: inspect.IntType | inspect.FloatType, value: float) -> bool:
    """Whether a number keeps its bounds."""
    return not (
        (kind.ge is not None and value < kind.ge)
        or (kind.gt is not None and value <= kind.gt)
        or (kind.le is not None and value > kind.le)
        or (kind.lt is not None and value >= kind.lt)
    )


def _number(noun: str, kind: inspect.IntType | inspect.FloatType, extra: dict[str, Any]) -> str:
    unit = f" of {extra['unit']}" if "unit" in extra else ""
    limits = " and ".join(bounds(kind))
    return f"{noun}{unit}{', ' if limits else ''}{limits}"
