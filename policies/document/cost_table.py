"""The cost table that a policy names by its file (`fairness.cost.file`): a CSV text to points, and these into the
document.

A revision of a policy is one text: it travels to services, into the history and into recorded logs, and must mean the
same there. So whoever reads a policy file puts the points where the name of their file stands, in the same line. Pure:
the file is read by others.
"""

import csv
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple, NoReturn

import msgspec

from policies.document.fairness import ReadTable
from policies.document.problems import PolicyError, Position, Problem
from policies.document.tree import Mapping, Node, Scalar, parse, plain_value

COLUMNS = ("prompt_tokens", "output_tokens", "cost")
SECTION = "fairness.cost.file"
FIRST = Position(1, 1)
LARGEST = 2**53
MAX_POINTS = 50_000
"""A document holds some more values than these."""

Place = tuple[int, int]


class NamedTable(NamedTuple):
    """A table of which a document has only the file's name."""

    name: str
    at: Position
    span: Place
    """Where the name begins and ends in the document's text, in characters."""


class _Row(NamedTuple):
    prompt_tokens: int
    output_tokens: int
    cost: float
    at: Position


def table_named(document: bytes, file: str) -> NamedTable | None:
    """The table that is to be read with this document; None: there is none.

    Raises:
        PolicyError: the document is not YAML, or the name is not written where it is used.
    """
    node: Node | None = parse(document, file)
    for name in ("fairness", "cost", "file"):
        node = _value(node, name)
    if not isinstance(node, Scalar) or not isinstance(value := node.value(), str):
        return None
    if node.span is None:
        _fail(file, node.at, "the name of the file is an alias", "write the name itself")
    return NamedTable(value, node.at, node.span)


def with_table(document: bytes, named: NamedTable, table: ReadTable) -> bytes:
    """The document with the points of its table in the place of the file's name."""
    text = document.decode("utf-8-sig")
    begin, end = named.span
    # JSON is YAML, in one line: every problem elsewhere stays on the line that it has in the file.
    return (text[:begin] + msgspec.json.encode(table).decode() + text[end:]).encode()


def read_table(content: bytes, file: str, name: str) -> ReadTable:
    """The points of a CSV file: a row for each pair of a prompt length and an output length, in any order.

    Args:
        content: the file, UTF-8; its first line names the columns.
        file: what error messages call it.
        name: what the document calls it.

    Raises:
        PolicyError: no cost can be read from it; `problems` has the first thing wrong with it.
    """
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        _fail(file, FIRST, f"byte {error.start} is not UTF-8", "save the file as UTF-8 text")
    costs: dict[Place, _Row] = {}
    for row in _rows(lines, file):
        point = row.prompt_tokens, row.output_tokens
        if point in costs:
            wrong = f"{point[0]} prompt and {point[1]} output tokens are here twice"
            _fail(file, row.at, wrong, f"line {costs[point].at.line} has their cost")
        if len(costs) == MAX_POINTS:
            _fail(file, row.at, f"the table has more than {MAX_POINTS} points", "fewer: it is linear between them")
        costs[point] = row
    prompts, outputs = (tuple(sorted({point[axis] for point in costs})) for axis in (0, 1))
    _check_lengths(costs, prompts, outputs, file)
    return ReadTable(
        name=name,
        prompt_tokens=prompts,
        output_tokens=outputs,
        costs=tuple(tuple(costs[prompt, output].cost for output in outputs) for prompt in prompts),
    )


def _value(node: Node | None, name: str) -> Node | None:
    if not isinstance(node, Mapping):
        return None
    return next((value for key, value in node.entries if isinstance(key, Scalar) and key.text == name), None)


def _rows(lines: list[str], file: str) -> Iterator[_Row]:
    reader = csv.reader(lines)
    header = next(reader, [])
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        allowed = f"the first line names {', '.join(COLUMNS)}"
        _fail(file, FIRST, f"the column {missing[0]} is missing", allowed)
    prompt_column, output_column, cost_column = (header.index(name) for name in COLUMNS)
    for fields in reader:
        line = reader.line_num
        if any(field.strip() for field in fields):
            prompt_tokens = _number(fields, prompt_column, line, file, least=1)
            output_tokens = _number(fields, output_column, line, file, least=0)
            yield _Row(prompt_tokens, output_tokens, _cost(fields, cost_column, line, file), Position(line, 1))


def _number(fields: list[str], column: int, line: int, file: str, *, least: int) -> int:
    text = _field(fields, column)
    number = int(text) if re.fullmatch("[0-9]{1,15}", text) else None
    if number is None or number < least:
        _bad_field(fields, column, line, file, f"a whole number of tokens, at least {least}")
    return number


def _cost(fields: list[str], column: int, line: int, file: str) -> float:
    cost = plain_value(_field(fields, column))
    if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost < LARGEST:
        _bad_field(fields, column, line, file, "a number, at least 0")
    return float(cost)


def _field(fields: list[str], column: int) -> str:
    return fields[column].strip() if column < len(fields) else ""


def _check_lengths(costs: dict[Place, _Row], prompts: tuple[int, ...], outputs: tuple[int, ...], file: str) -> None:
    for what, lengths in (("prompt", prompts), ("output", outputs)):
        if len(lengths) < 2:
            _fail(file, FIRST, f"there are {len(lengths)} lengths of {what}", "at least 2 are needed")
    if outputs[0] != 0:
        at = next(row.at for (_, output), row in costs.items() if output == outputs[0])
        wrong = f"the shortest output is {outputs[0]} tokens, so no cost is known for a prompt alone"
        _fail(file, at, wrong, "the first length must be 0")
    for prompt in prompts:
        for output in outputs:
            if (prompt, output) not in costs:
                wrong = f"{prompt} prompt and {output} output tokens have no cost"
                _fail(file, FIRST, wrong, "every pair of lengths needs one")
    for prompt in prompts:
        for less, more in pairwise(outputs):
            _check_rise(costs[prompt, less], costs[prompt, more], "more output", file)
    for less, more in pairwise(prompts):
        for output in outputs:
            _check_rise(costs[less, output], costs[more, output], "a longer prompt", file)


def _check_rise(less: _Row, more: _Row, why: str, file: str) -> None:
    if more.cost < less.cost:
        wrong = f"the cost falls from {less.cost:g} to {more.cost:g} for {why}"
        _fail(file, more.at, wrong, f"at least as much as in line {less.at.line}")


def _bad_field(fields: list[str], column: int, line: int, file: str, allowed: str) -> NoReturn:
    text = _field(fields, column)
    before = sum(len(field) + 1 for field in fields[:column])
    wrong = f'the text "{text[:40]}" does not fit' if text else "a value is missing"
    _fail(file, Position(line, before + 1), wrong, f"allowed: {allowed}")


def _fail(file: str, at: Position, wrong: str, allowed: str) -> NoReturn:
    raise PolicyError([Problem(file, at, SECTION, wrong, allowed)])
