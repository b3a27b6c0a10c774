"""What damage may be done to a YAML document: ways, places, and what is wrong wherever it stands. Owns no loader."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import zip_longest
from typing import Any, NamedTuple

import yaml

from policies.document.tree import MAX_BYTES, MAX_DEPTH, MAX_VALUES

SEED = 7
NUM_KINDS = 500

NEVER_A_VALUE = {
    "a mapping of nothing known": "{damaged: 1}",
    "a list in lists": "[[[1]]]",
    "no number": ".nan",
    "infinity": "-.inf",
    "a number beyond doubles": "1e999",
    "a number that is not exact": "9007199254740993",
    "code by a tag": "!!python/object/apply:os.system [id]",
    "bytes by a tag": "!!binary aGk=",
    "an alias of nothing": "*nowhere",
    "an alias of itself": "&a [*a]",
    "an open quote": '"never closed',
    "an open list": "[1, 2",
    "an open mapping": "{a: 1",
    "a stray bracket": "]",
    "a reserved character": "@value",
    "a directive": "%YAML 1.1",
    "a colon too many": "a: b: c",
}
NEVER_A_NUMBER = {
    "text": '"5 apples"',
    "a unit": "5s",
    "a percentage": "50%",
    "a decimal comma": "1,5x",
    "digits of another script": "\u0665",
    "a truth value": "yes it is",
    "far below all": "-1e300",
    "grouped digits": "1_000",
}
MISSPELT = "-damaged"
NUM_FOR_A_VALUE = 8


class Choice(NamedTuple):
    """A kind of damage, before it is done."""

    kind: str
    make: Callable[[], bytes]


class Damage(NamedTuple):
    """A damaged document."""

    kind: str
    content: bytes


def damages(document: bytes, num_kinds: int = NUM_KINDS, seed: int = SEED) -> list[Damage]:
    """So many different kinds of damage to a valid document, as even over the ways to do it as there are places."""
    chance = random.Random(seed)
    ways = [list(way(document, chance)) for way in (_bytes, _text, _lines, _values, _keys, _bombs)]
    for way in ways:
        chance.shuffle(way)
    found: dict[bytes, str] = {}
    for choice in (one for in_turn in zip_longest(*ways) for one in in_turn if one is not None):
        if len(found) < num_kinds:
            found.setdefault(choice.make(), choice.kind)
    return [Damage(kind, content) for content, kind in found.items()]


def _bytes(document: bytes, chance: random.Random) -> Iterator[Choice]:
    """What is not text, or not YAML's: wherever it stands, in comments too."""
    inserted = {
        "no UTF-8 at all": b"\xff",
        "half a character": b"\xc3(",
        "a surrogate": b"\xed\xa0\x80",
        "an overlong character": b"\xc0\xaf",
        "NUL": b"\0",
        "a bell": b"\a",
        "an escape": b"\x1b[31m",
        "a delete": b"\x7f",
        "a noncharacter": "\ufffe".encode(),
    }
    whole = document.decode()
    for name, piece in inserted.items():
        for _ in range(8):
            at = len(whole[: chance.randrange(len(whole))].encode())
            yield _made(f"{name} at byte {at}", document[:at] + piece + document[at:])
    for coding in ("utf-16", "utf-16-le", "utf-32", "utf-7"):
        yield _made(f"saved as {coding}", f"é: {whole}".encode(coding))


def _text(document: bytes, chance: random.Random) -> Iterator[Choice]:
    """What the whole of it is."""
    whole = {
        "empty": b"",
        "blank": b" \n\n  \n",
        "a byte order mark alone": b"\xef\xbb\xbf",
        "comments alone": b"# nothing\n# at all\n",
        "a document of nothing": b"---\n...\n",
        "null": b"~\n",
        "a word": b"fairlead\n",
        "a number": b"1\n",
        "a list": b"- version: 1\n",
        "an empty mapping in a list": b"[{}]\n",
        "two documents": document + b"---\n" + document,
        "twice the same": document + document,
        "HTML": b"<!DOCTYPE html><html><body>404</body></html>\n",
        "a merge conflict": b"<<<<<<< HEAD\n" + document + b"=======\n" + document + b">>>>>>> theirs\n",
        "an archive": b"PK\x03\x04" + document,
        "a shell script": b"#!/bin/sh\nset -e\necho: : 1\n",
        "Windows' paths": b"data: C:\\x\n\tb\n",
    }
    for name, content in whole.items():
        yield _made(name, content)
    # Cut inside braces or brackets, so that what is left can be no document.
    opened = [at for at in range(len(document)) if _is_open(document[:at])]
    for at in chance.sample(opened, min(80, len(opened))):
        yield _made(f"cut at byte {at}", document[:at])


def _made(kind: str, content: bytes) -> Choice:
    return Choice(kind, lambda: content)


def _is_open(text: bytes) -> bool:
    last = b" ".join(line.partition(b"#")[0] for line in text.rsplit(b"\n", 3))
    return last.count(b"{") + last.count(b"[") > last.count(b"}") + last.count(b"]")


def _lines(document: bytes, chance: random.Random) -> Iterator[Choice]:
    """Indentation and what a hurried hand leaves."""
    lines = document.decode().splitlines(keepends=True)
    for number, line in enumerate(lines):
        body = line.lstrip(" ")
        if not body.strip() or body.startswith("#"):
            continue
        before, after = "".join(lines[:number]), "".join(lines[number + 1 :])
        where = f"line {number + 1}"
        if line != body:
            yield _made(f"a tab indents {where}", f"{before}\t{body}{after}".encode())
        for mark in ("}", "@", "`", "%", ">>>>", "\ufeff"):
            yield _made(f"{mark!r} begins {where}", f"{before}{line[: -len(body)]}{mark}{body}{after}".encode())
        if ":" in body and not body.startswith("-"):
            yield _made(f"no colon in {where}", f"{before}{line.replace(':', '', 1)}{after}".encode())
    del chance


def _values(document: bytes, chance: random.Random) -> Iterator[Choice]:
    """A value that nothing in any schema may be."""
    tree = yaml.safe_load(document)
    for path, value in _walk(tree):
        choices = dict(NEVER_A_VALUE)
        if isinstance(value, int | float) and not isinstance(value, bool):
            choices |= NEVER_A_NUMBER
        for name in chance.sample(sorted(choices), NUM_FOR_A_VALUE):
            yield Choice(f"{name} at {_place(path)}", partial(_with, tree, path, choices[name]))


def _keys(document: bytes, chance: random.Random) -> Iterator[Choice]:
    """Keys that are unknown, misspelt, there twice or no text; lists and mappings that are something else."""
    del chance
    tree = yaml.safe_load(document)
    for path, value in [((), tree), *_walk(tree)]:
        where = _place(path)
        if isinstance(value, list) and path:
            yield Choice(f"a mapping instead of the list at {where}", partial(_with, tree, path, "{damaged: 1}"))
            yield Choice(f"a list in the list at {where}", partial(_with, tree, (*path, 0), "[[]]"))
        if not isinstance(value, dict):
            continue
        for number, key in enumerate(value):
            for how, names in (
                ("an unknown key before", (f"damaged_{number}", key)),
                ("twice", (key, key)),
                ("misspelt", (f"{key}{MISSPELT}",)),
                ("no text", ("[a, b]",)),
                ("an alias", ("*nowhere ",)),
            ):
                yield Choice(f"the key {key} of {where}: {how}", partial(_with_keys, tree, path, number, names))


def _bombs(document: bytes, chance: random.Random) -> Iterator[Choice]:
    """Small or large files that would take a loader's time, memory or stack."""
    del chance
    lists = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
    )
    maps = "a0: &a0 {x: 1, y: 2}\n" + "".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}\n" for n in range(1, 60))
    yield _made("a bomb of lists", document + lists.encode())
    yield _made("a bomb of mappings", document + maps.encode())
    yield _made("a bomb merged", document + maps.encode() + b"b: {<<: *a59}\n")
    for depth in (MAX_DEPTH + 1, 1_000, 100_000):
        yield _made(f"{depth} lists in lists", document + b"deep: " + b"[" * depth + b"]" * depth + b"\n")
        yield _made(f"{depth} open lists", document + b"deep: " + b"[" * depth)
        yield _made(f"{depth} mappings in mappings", document + b"deep: " + b"{a: " * depth + b"1" + b"}" * depth)
    staircase = "".join(f"{' ' * n}a{n}:\n" for n in range(1_000))
    yield _made("1000 steps of indentation", document + staircase.encode())
    yield _made("dashes without end", document + b"list:\n" + b"- " * 10_000 + b"1\n")
    yield _made("too many values", document + b"many: [" + b"1," * MAX_VALUES + b"1]\n")
    yield _made("too many bytes", document + b"#" * MAX_BYTES)
    yield _made("a long key", document + b"k" * 1_000_000 + b": 1\n")
    yield _made("a long number", document + b"number: " + b"9" * 1_000_000 + b"\n")
    yield _made("a long text", document + b'text: "' + b"x" * 2_000_000 + b'"\n')
    yield _made("10000 unknown keys", document + b"".join(b"key_%d: 1\n" % n for n in range(10_000)))
    yield _made("10000 anchors", document + b"".join(b"key_%d: &a%d 1\n" % (n, n) for n in range(10_000)))


def _walk(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield (*path, key), value
        yield from _walk(value, (*path, key))


def _place(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path)) or "the document"


def _with(tree: Any, path: tuple[Any, ...], raw: str) -> bytes:
    """The document with text of any kind for a value."""
    return _written(_changed(tree, path, lambda _: "DAMAGE")).replace("DAMAGE", raw).encode()


def _with_keys(tree: Any, path: tuple[Any, ...], number: int, names: tuple[str, ...]) -> bytes:
    """The document with these keys where one was, each with what that one had."""

    def renamed(mapping: dict[str, Any]) -> dict[str, Any]:
        entries = list(mapping.items())
        _, value = entries[number]
        entries[number : number + 1] = [(f"DAMAGE{index}", value) for index in range(len(names))]
        return dict(entries)

    text = _written(_changed(tree, path, renamed))
    for index, name in enumerate(names):
        text = text.replace(f"DAMAGE{index}", name)
    return text.encode()


def _written(tree: Any) -> str:
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, _: Any) -> bool:
        return True


def _changed(tree: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    if not path:
        return change(tree)
    first, *rest = path
    if isinstance(tree, dict):
        return {key: _changed(value, tuple(rest), change) if key == first else value for key, value in tree.items()}
    return [_changed(value, tuple(rest), change) if index == first else value for index, value in enumerate(tree)]
