"""Which numbers and sizes a parameter takes, in words: msgspec's own sentence names one bound and not the value."""

import operator
from typing import Any

from msgspec import inspect

MAX_SHOWN = 100
BOUNDS = {
    "ge": (operator.ge, "at least"),
    "gt": (operator.gt, "more than"),
    "le": (operator.le, "at most"),
    "lt": (operator.lt, "less than"),
}


def out_of_bounds(kind: type[Any], fields: dict[str, Any], path: str) -> str:
    """What is wrong with a number or a size at `path` of a body's fields, at their top or one level below.

    Empty if it is neither, or within its bounds.
    """
    name = path.partition("[")[0]
    node = inspect.type_info(kind)
    types = [field.type for field in getattr(node, "fields", ()) if field.encode_name == name]
    options = [option for each in types for option in (each.types if isinstance(each, inspect.UnionType) else (each,))]
    value = fields.get(name)
    for option in options:
        if too_many := _too_many(option, value):
            return too_many
        match option, value:
            case inspect.DictType(), dict():
                found = (_wrong(option.value_type, item, f"{str(key)[:MAX_SHOWN]}: ") for key, item in value.items())
                return next(filter(None, found), "")
            case inspect.ListType(), list():
                items = (_too_many(option.item_type, item) or _wrong(option.item_type, item, "") for item in value)
                return next(filter(None, items), "")
            case ((inspect.IntType() | inspect.FloatType()), (int() | float())):
                return _wrong(option, value, "")
    return ""


def _too_many(kind: inspect.Type, value: Any) -> str:
    limit = getattr(kind, "max_length", None)
    match kind, value:
        case (inspect.StrType(), str()):
            what = "characters"
        case (inspect.ListType(), list()) | (inspect.DictType(), dict()):
            what = "entries"
        case _:
            return ""
    return f"has {len(value)} {what}; at most {limit} are allowed" if limit is not None and len(value) > limit else ""


def _wrong(kind: inspect.Type, value: Any, where: str) -> str:
    given: dict[str, Any] = {name: getattr(kind, name, None) for name in BOUNDS}
    bounds = [(BOUNDS[name], bound) for name, bound in given.items() if bound is not None]
    if not isinstance(value, int | float) or all(within(value, bound) for (within, _), bound in bounds):
        return ""
    allowed = " and ".join(f"{word} {bound:.15g}" for (_, word), bound in bounds)
    return f"{where}{value} is out of bounds: it must be {allowed}"
