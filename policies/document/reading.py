"""A tree read as a schema type: every value checked where it stands, every problem kept.

Knows types, not meaning: the rules that hold between values are in `rules.py`.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import UNSET, inspect

from policies.document.problems import MAX_PROBLEMS_SHOWN, Position, Problem, nearest
from policies.document.tree import Listing, Mapping, Node, Scalar
from policies.document.words import allowed, listed, within

Path = tuple[str | int, ...]
MAX_NUMBER = 2**53
"""Larger whole numbers are not exact everywhere they travel."""


class Reading:
    """What was read of a document: values by path, places by path, problems.

    A value is present only if it and everything in it is right; `UNSET` stands for one that is not.
    """

    def __init__(self, root: Node, kind: inspect.Type, file: str, planned: Sequence[str] = ()) -> None:
        self.file = file
        self.planned = planned
        self.problems: list[Problem] = []
        self.nodes: dict[Path, Node] = {}
        self.values: dict[Path, Any] = {}
        self._read((), root, kind, {})

    def get(self, path: Path) -> Any:
        """The value at a path, or UNSET if the document has none there or a wrong one."""
        return self.values.get(path, UNSET)

    def names(self, path: Path) -> bool:
        """Whether the document says anything at this path, right or wrong."""
        return path in self.nodes

    def length(self, path: Path) -> int:
        """Items of the list at a path; 0 if there is none."""
        node = self.nodes.get(path)
        return len(node.items) if isinstance(node, Listing) else 0

    def add(self, path: Path, wrong: str, allowed: str, nearest: str = "") -> None:
        """A problem at a path, or at the closest thing around it that the document has."""
        known = path
        while known not in self.nodes:
            known = known[:-1]
        self._problem(path, self.nodes[known].at, wrong, allowed, nearest)

    def label(self, path: Path) -> str:
        """A path in words: items of lists by their name where they have one, else by position from 0."""
        text = ""
        for depth, part in enumerate(path):
            if isinstance(part, int):
                text += f"[{self._item_name(path[: depth + 1]) or part}]"
            else:
                text += f".{part}" if text else part
        return text or "document"

    def _item_name(self, path: Path) -> str:
        node = self.nodes.get(path)
        if isinstance(node, Mapping):
            for key, value in node.entries:
                if isinstance(key, Scalar) and key.text in ("name", "id") and isinstance(value, Scalar):
                    return _short(value.text)
        return ""

    def _problem(self, path: Path, at: Position, wrong: str, allowed: str, nearest: str = "") -> None:
        self.problems.append(Problem(self.file, at, self.label(path), wrong, allowed, nearest))

    def _nearest(self, name: str, names: Iterable[str]) -> str:
        """The right name closest to a wrong one; not looked for once there are more problems than are ever shown."""
        return nearest(name, names) if len(self.problems) < MAX_PROBLEMS_SHOWN else ""

    def _mismatch(self, path: Path, node: Node, kind: inspect.Type, extra: dict[str, Any]) -> Any:
        close = ""
        if isinstance(node, Scalar):
            close = self._nearest(node.text, _literals(kind))
        self._problem(path, node.at, f"{_described(node)} does not fit", f"allowed: {_allowed(kind, extra)}", close)
        return UNSET

    def _read(self, path: Path, node: Node, kind: inspect.Type, extra: dict[str, Any]) -> Any:
        self.nodes[path] = node
        match kind, node:
            case inspect.Metadata(), _:
                value = self._read(path, node, kind.type, {**extra, **(kind.extra or {})})
            case inspect.UnionType(), _:
                value = self._union(path, node, kind, extra)
            case inspect.StructType(), Mapping():
                value = self._struct(path, node, kind)
            case inspect.DictType(), Mapping():
                value = self._dict(path, node, kind)
            case inspect.VarTupleType(), Listing():
                value = self._list(path, node, kind, extra)
            case _, Scalar():
                value = self._scalar(path, node, kind, extra)
            case _:
                value = self._mismatch(path, node, kind, extra)
        if value is not UNSET:
            self.values[path] = value
        return value

    def _struct(self, path: Path, node: Mapping, kind: inspect.StructType) -> Any:
        fields = {field.encode_name: field for field in kind.fields}
        known = list(fields) if kind.tag_field is None else [kind.tag_field, *fields]
        found: dict[str, Position] = {}
        values: dict[str, Any] = {}
        complete = True
        for key, value in node.entries:
            name = key.text if isinstance(key, Scalar) else ""
            if name == kind.tag_field and name not in found:
                found[name] = key.at
                said = self._read((*path, name), value, inspect.LiteralType(values=(str(kind.tag),)), {})
                complete = complete and said is not UNSET
            elif name in fields and name not in found:
                found[name] = key.at
                field = fields[name]
                values[field.name] = self._read((*path, name), value, field.type, {})
                complete = complete and values[field.name] is not UNSET
            else:
                self._bad_key(path, key, name, known, found)
                complete = False
        for name, field in fields.items():
            if field.required and name not in found:
                self._problem(path, node.at, f'the key "{name}" is missing', f"allowed: {allowed(field.type)}")
                complete = False
        if not complete:
            return UNSET
        try:
            return kind.cls(**values)
        except ValueError as error:
            # A rule between its values that the type itself keeps: `what is wrong; what is right`.
            wrong, _, right = str(error).partition("; ")
            self._problem(path, node.at, wrong, right)
            return UNSET

    def _dict(self, path: Path, node: Mapping, kind: inspect.DictType) -> Any:
        values: dict[str, Any] = {}
        found: dict[str, Position] = {}
        complete = True
        for key, value in node.entries:
            name = key.text if isinstance(key, Scalar) else ""
            if not name or name in found:
                self._bad_key(path, key, name, (), found)
                complete = False
                continue
            found[name] = key.at
            values[name] = self._read((*path, name), value, kind.value_type, {})
            complete = complete and values[name] is not UNSET
        return values if complete else UNSET

    def _bad_key(self, path: Path, key: Node, name: str, fields: Iterable[str], found: dict[str, Position]) -> None:
        if name in found:
            wrong = f'the key "{name}" is here twice, first at {found[name].line}:{found[name].column}'
            self._problem(path, key.at, wrong, "each key is allowed once")
        elif not path and name in self.planned:
            self._problem((name,), key.at, f"no part of this version reads `{name}`", "remove it")
        else:
            wrong = f'unknown key "{_short(name)}"' if name else f"{_described(key)} is not a key"
            self._problem(path, key.at, wrong, f"allowed: {listed(fields)}", self._nearest(name, fields))

    def _list(self, path: Path, node: Listing, kind: inspect.VarTupleType, extra: dict[str, Any]) -> Any:
        if kind.min_length is not None and len(node.items) < kind.min_length:
            wrong = f"the list has only {len(node.items)}" if node.items else "the list is empty"
            self._problem(path, node.at, wrong, f"allowed: {allowed(kind, extra)}")
            return UNSET
        items = [self._read((*path, index), item, kind.item_type, {}) for index, item in enumerate(node.items)]
        return UNSET if any(item is UNSET for item in items) else tuple(items)

    def _union(self, path: Path, node: Node, kind: inspect.UnionType, extra: dict[str, Any]) -> Any:
        fitting = [one for one in kind.types if _could_hold(one, node)]
        if isinstance(node, Mapping) and len(fitting) > 1:
            return self._tagged(path, node, [one for one in fitting if isinstance(one, inspect.StructType)])
        if len(fitting) == 1:
            return self._read(path, node, fitting[0], {**extra, "instead": allowed(kind, extra)})
        return self._mismatch(path, node, kind, extra)

    def _tagged(self, path: Path, node: Mapping, kinds: list[inspect.StructType]) -> Any:
        """One of several kinds of mappings: the one that it says it is, else the only one that has its keys."""
        tag_field, tags = str(kinds[0].tag_field), [str(kind.tag) for kind in kinds]
        keys = {key.text: value for key, value in node.entries if isinstance(key, Scalar)}
        said = keys.get(tag_field)
        if said is None:
            fitting = [kind for kind in kinds if keys.keys() <= {field.encode_name for field in kind.fields}]
            if len(fitting) == 1:
                return self._struct(path, node, fitting[0])
            self._problem(path, node.at, f'the key "{tag_field}" is missing', f"allowed: one of {listed(tags)}")
            return UNSET
        for kind in kinds:
            if isinstance(said, Scalar) and said.text == kind.tag:
                return self._struct(path, node, kind)
        at = (*path, tag_field)
        self.nodes[at] = said
        close = self._nearest(said.text, tags) if isinstance(said, Scalar) else ""
        self._problem(at, said.at, f"{_described(said)} does not fit", f"allowed: one of {listed(tags)}", close)
        return UNSET

    def _scalar(self, path: Path, node: Scalar, kind: inspect.Type, extra: dict[str, Any]) -> Any:
        value = node.value()
        match kind, value:
            case inspect.NoneType(), None:
                return None
            case inspect.BoolType(), bool():
                return value
            case inspect.LiteralType(values=values), _ if any(
                value == one and type(value) is type(one) for one in values
            ):
                return value
            case inspect.StrType(), str():
                return self._text(path, node, value, kind, extra)
            case inspect.IntType() | inspect.FloatType(), int() | float() if not isinstance(value, bool):
                return self._number(path, node, value, kind, extra)
            case inspect.StrType(), _ if node.plain and node.text:
                wrong = f"{_described(node)} does not fit"
                self._problem(path, node.at, wrong, f'allowed: {allowed(kind, extra)}, in quotes: "{node.text}"')
                return UNSET
            case _:
                return self._mismatch(path, node, kind, extra)

    def _text(self, path: Path, node: Scalar, value: str, kind: inspect.StrType, extra: dict[str, Any]) -> Any:
        too_long = kind.max_length is not None and len(value) > kind.max_length
        if too_long or (kind.pattern is not None and not re.fullmatch(kind.pattern.removesuffix("$"), value)):
            return self._mismatch(path, node, kind, extra)
        return value

    def _number(
        self,
        path: Path,
        node: Scalar,
        value: float,
        kind: inspect.IntType | inspect.FloatType,
        extra: dict[str, Any],
    ) -> Any:
        if isinstance(kind, inspect.IntType) and not isinstance(value, int):
            return self._mismatch(path, node, kind, extra)
        too_large = abs(value) > MAX_NUMBER
        if too_large or not math.isfinite(value) or not within(kind, value):
            limit = f", never beyond {MAX_NUMBER}" if too_large else ""
            wrong = f"{_short(node.text)} is out of bounds"
            self._problem(path, node.at, wrong, f"allowed: {_allowed(kind, extra)}{limit}")
            return UNSET
        return value if isinstance(kind, inspect.IntType) else float(value)


def _allowed(kind: inspect.Type, extra: dict[str, Any]) -> str:
    """What may stand here; for a member of a union, what the whole union allows."""
    return str(extra.get("instead") or allowed(kind, extra))


def _could_hold(kind: inspect.Type, node: Node) -> bool:
    """Whether a member of a union is the one meant by a value of this shape."""
    if isinstance(kind, inspect.Metadata):
        return _could_hold(kind.type, node)
    match node:
        case Mapping():
            return isinstance(kind, inspect.StructType | inspect.DictType)
        case Listing():
            return isinstance(kind, inspect.VarTupleType)
    match node.value():
        case None:
            return isinstance(kind, inspect.NoneType)
        case bool():
            return isinstance(kind, inspect.BoolType)
        case str():
            return isinstance(kind, inspect.StrType) or (
                isinstance(kind, inspect.LiteralType) and node.text in kind.values
            )
        case _:
            return isinstance(kind, inspect.IntType | inspect.FloatType)


def _literals(kind: inspect.Type) -> list[str]:
    """The names that a value of this type may be."""
    match kind:
        case inspect.LiteralType(values=values):
            return [value for value in values if isinstance(value, str)]
        case inspect.UnionType(types=types):
            return [name for one in types for name in _literals(one)]
        case _:
            return []


def _described(node: Node) -> str:
    match node:
        case Mapping():
            return "a mapping"
        case Listing():
            return "a list"
    match node.value():
        case None:
            return "an empty value"
        case str():
            return f'the text "{_short(node.text)}"'
        case bool():
            return f"the truth value {node.text}"
        case _:
            return f"the number {_short(node.text)}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."
