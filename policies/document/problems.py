"""What can be wrong with a document, and how it is said: `file:line:col: section: wrong; allowed; nearest name`."""

import difflib
from collections.abc import Iterable

from msgspec import Struct

MAX_PROBLEMS_SHOWN = 100


class Position(Struct, frozen=True, order=True):
    """A place in a text file; both counts start at 1."""

    line: int
    column: int


class Problem(Struct, frozen=True):
    """One thing to mend; `str()` is its line."""

    file: str
    at: Position
    section: str
    """The path of the value, such as `batching.stages[1].prefill.chunk`."""
    wrong: str
    allowed: str
    nearest: str = ""
    """The right name closest to a wrong one; empty if none is close."""

    def __str__(self) -> str:
        hint = f'; did you mean "{self.nearest}"?' if self.nearest else ""
        return f"{self.file}:{self.at.line}:{self.at.column}: {self.section}: {self.wrong}; {self.allowed}{hint}"


class PolicyError(Exception):
    """A document that cannot be used. `problems` holds every one found, in the order of the file; `str()` has one a
    line.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: problem.at)
        lines = [str(problem) for problem in self.problems[:MAX_PROBLEMS_SHOWN]]
        if len(self.problems) > MAX_PROBLEMS_SHOWN:
            lines.append(f"... and {len(self.problems) - MAX_PROBLEMS_SHOWN} more problems")
        super().__init__("\n".join(lines))


def nearest(name: str, names: Iterable[str]) -> str:
    """The one of `names` most like `name`, or "" if none is close."""
    return next(iter(difflib.get_close_matches(name.lower(), list(names), n=1)), "")
