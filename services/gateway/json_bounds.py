"""How much there may be in a JSON document before it is read: a few megabytes of empty lists take a second to make.

Counts brackets and colons, first wherever they stand, which is fast, and outside of strings where that is too many.
"""

import re

from services.errors import RequestError

MAX_DEPTH = 128
MAX_PARTS = 50_000
"""Lists, objects and members of objects."""
MAX_STRINGS = 2 * MAX_PARTS
"""Taken out before brackets are counted; what further ones say counts as if it were no text."""
STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
BRACKET = re.compile(rb"[\[{\]}]")
OPENING = b"[{"


def check_parts(data: bytes, name: str) -> None:
    """Whether a document is small enough to be read at once.

    Args:
        data: JSON, maybe malformed.
        name: what the sentence calls it.

    Raises:
        RequestError: it is nested too deeply or has too many parts.
    """
    brackets = data.count(b"[") + data.count(b"{")
    if brackets <= MAX_DEPTH and brackets + data.count(b":") <= MAX_PARTS:
        return
    bare = STRING.sub(b"", data, MAX_STRINGS)
    parts = bare.count(b"[") + bare.count(b"{") + bare.count(b":")
    if parts > MAX_PARTS:
        message = f"{name} has {parts} lists, objects and members of objects; at most {MAX_PARTS} are allowed"
        raise RequestError("invalid_value", message)
    depth = deepest = 0
    for bracket in BRACKET.findall(bare):
        depth += 1 if bracket in OPENING else -1
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        message = f"{name} is nested {deepest} deep; at most {MAX_DEPTH} is allowed"
        raise RequestError("invalid_value", message)
