"""YAML text as a tree in which every value knows its line and column.

Owns syntax and nothing of meaning. Scalars follow the core schema of YAML 1.2, as editors do: `on` and `no` are text,
`1e3` is a number. A document is bounded in bytes, depth and, once its aliases are written out, in values, so that no
text makes a running service slow or run out of memory.
"""

import re
from typing import NoReturn

import yaml
from msgspec import Struct
from msgspec.structs import replace

from policies.document.problems import PolicyError, Position, Problem

MAX_BYTES = 4 * 2**20
MAX_DEPTH = 32
MAX_VALUES = 100_000

_INT = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_MAX_NUMBER_LENGTH = 400  # Python refuses to read whole numbers of more than 4300 digits
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufeff\uff00-\ufffd\U00010000-\U0010ffff]")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where pyyaml was built with it: ten times faster


class Scalar(Struct, frozen=True):
    """A single value as written."""

    at: Position
    text: str
    plain: bool
    """Not quoted: may be a number, true, false or nothing."""
    span: tuple[int, int] | None = None
    """Where it begins and ends in the text, in characters; None: an alias stands here."""
    size: int = 1

    def value(self) -> str | float | bool | None:
        """What it means by the core schema of YAML 1.2."""
        return plain_value(self.text) if self.plain else self.text


class Listing(Struct, frozen=True):
    """A list."""

    at: Position
    items: "list[Node]"
    size: int


class Mapping(Struct, frozen=True):
    """A mapping, duplicate keys included."""

    at: Position
    entries: "list[tuple[Node, Node]]"
    size: int


Node = Scalar | Listing | Mapping


def plain_value(text: str) -> str | float | bool | None:
    """The value of an unquoted scalar: nothing, a truth value, a number or text."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) <= _MAX_NUMBER_LENGTH:
        if _INT.fullmatch(text):
            return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
        if _FLOAT.fullmatch(text):
            return float(text.replace(".inf", "inf").replace(".nan", "nan") if "." in text[:2] else text)
    return text


def parse(data: bytes, file: str) -> Node:
    """The tree of one YAML document.

    Raises:
        PolicyError: not UTF-8, not YAML, empty, several documents, an unknown or self-containing alias, a tag, or
            larger than the bounds of this module.
    """
    text = _decoded(data, file)
    builder = _Builder(file)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = Position(mark.line + 1, mark.column + 1) if mark else Position(1, 1)
        said = " ".join(part for part in (error.context, error.problem) if part)
        _fail(file, at, "syntax", f"this is not YAML: {said}", "`key: value` lines, indented with spaces, are expected")
    except yaml.YAMLError as error:
        _fail(file, Position(1, 1), "syntax", f"this is not YAML: {error}", "UTF-8 text is expected")
    if builder.root is None:
        _fail(file, Position(1, 1), "document", "the file is empty", "a mapping of `key: value` lines is expected")
    return builder.root


def _decoded(data: bytes, file: str) -> str:
    if len(data) > MAX_BYTES:
        wrong = f"the file has more than {MAX_BYTES} bytes"
        _fail(file, Position(1, 1), "document", wrong, "a document has some thousand")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = _position(data[: error.start].decode("utf-8", errors="replace"))
        _fail(file, at, "document", f"byte {error.start} is not UTF-8", "save the file as UTF-8 text")
    found = _UNPRINTABLE.search(text)
    if found:
        wrong = f"the character U+{ord(found.group()):04X} cannot be part of YAML"
        _fail(file, _position(text[: found.start()]), "syntax", wrong, "remove it")
    return text


def _position(before: str) -> Position:
    """Where the text after `before` starts."""
    return Position(before.count("\n") + 1, len(before) - before.rfind("\n"))


def _fail(file: str, at: Position, section: str, wrong: str, allowed: str) -> NoReturn:
    raise PolicyError([Problem(file, at, section, wrong, allowed)])


def _span(event: yaml.Event) -> tuple[int, int] | None:
    start, end = event.start_mark, event.end_mark
    return (start.index, end.index) if start and end else None


class _Builder:
    """Turns parser events into nodes with a stack of its own: a deep document cannot exhaust Python's."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.root: Node | None = None
        self.anchors: dict[str, Node] = {}
        self.open: list[tuple[yaml.Event, Position, list[Node]]] = []
        self.num_nodes = 0

    def take(self, event: yaml.Event) -> None:
        """One event of the parser, in order."""
        mark = event.start_mark
        at = Position(mark.line + 1, mark.column + 1) if mark else Position(1, 1)
        match event:
            case yaml.DocumentStartEvent() if self.root is not None:
                self._fail(at, "a second document starts here", "one document in a file is allowed")
            case yaml.AliasEvent():
                self._add(self._alias(str(event.anchor), at))
            case yaml.ScalarEvent():
                self._refuse_tag(event, at)
                empty = not event.value and event.implicit[0]
                plain = bool(event.implicit[0]) or empty
                self._add(self._anchored(event, Scalar(at, event.value, plain, _span(event))))
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                self._refuse_tag(event, at)
                if len(self.open) == MAX_DEPTH:
                    self._fail(at, f"values are nested deeper than {MAX_DEPTH} levels", "flatten them")
                self.open.append((event, at, []))
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                self._close()
            case _:
                pass

    def _close(self) -> None:
        start, at, children = self.open.pop()
        size = 1 + sum(child.size for child in children)
        self._bound(size, at, " once aliases are written out")
        node: Node
        if isinstance(start, yaml.SequenceStartEvent):
            node = Listing(at, children, size)
        else:
            node = Mapping(at, list(zip(children[::2], children[1::2], strict=True)), size)
        self._add(self._anchored(start, node))

    def _bound(self, num_values: int, at: Position, how: str) -> None:
        if num_values > MAX_VALUES:
            self._fail(at, f"there are {num_values} values up to here{how}", f"at most {MAX_VALUES} values are read")

    def _add(self, node: Node) -> None:
        self.num_nodes += 1
        self._bound(self.num_nodes, node.at, "")
        if self.open:
            self.open[-1][2].append(node)
        else:
            self.root = node

    def _anchored(self, event: yaml.Event, node: Node) -> Node:
        anchor = getattr(event, "anchor", None)
        if anchor:
            self.anchors[anchor] = node
        return node

    def _alias(self, name: str, at: Position) -> Node:
        if name not in self.anchors:
            self._fail(at, f"no finished value before this is anchored as &{name}", "an alias repeats an earlier value")
        node = self.anchors[name]
        return replace(node, at=at, span=None) if isinstance(node, Scalar) else replace(node, at=at)

    def _refuse_tag(self, event: yaml.Event, at: Position) -> None:
        tag = getattr(event, "tag", None)
        if tag and tag != "!":
            self._fail(at, f'the tag "{tag}" has no meaning here', "plain values, lists and mappings are allowed")

    def _fail(self, at: Position, wrong: str, allowed: str) -> NoReturn:
        _fail(self.file, at, "document", wrong, allowed)
