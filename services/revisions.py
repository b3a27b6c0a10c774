"""The revisions of the policy there have been: a file in the data folder that outlives the services.

Owns the SQLite file. Admission writes what became of each save; the `fairlead policy` commands read that, and leave a
note of who saves what and why before they do. Knows documents as bytes.
"""

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

FILE = "policy-history.sqlite"
KEPT_REVISIONS = 1000
KEPT_SAVES = 100
BUSY_S = 2.0

TABLES = """
CREATE TABLE IF NOT EXISTS revisions (
    revision INTEGER PRIMARY KEY, unix_s REAL, name TEXT, digest TEXT, author TEXT, message TEXT, document BLOB
);
CREATE TABLE IF NOT EXISTS saves (
    number INTEGER PRIMARY KEY AUTOINCREMENT, unix_s REAL, digest TEXT, revision INTEGER, error TEXT
);
CREATE TABLE IF NOT EXISTS notes (digest TEXT PRIMARY KEY, author TEXT, message TEXT);
"""


class HistoryError(Exception):
    """The history cannot be read or written; the sentence names the file."""


class Revision(NamedTuple):
    """A document that came into force."""

    revision: int
    unix_s: float
    name: str
    digest: str
    author: str
    """Empty: the file was edited."""
    message: str
    document: bytes


class Save(NamedTuple):
    """What became of a save of the policy file."""

    number: int
    unix_s: float
    digest: str
    revision: int
    """In force after it."""
    error: str
    """Empty: it is this save's."""


class Revisions:
    """The history in a data folder. Every method opens the file and closes it again.

    All of them raise `HistoryError`.
    """

    def __init__(self, data: str) -> None:
        self.path = Path(data) / FILE

    def all(self) -> list[Revision]:
        """Oldest first; the last is the one in force, or was when the services stopped."""
        with self._reading() as connection:
            rows = (
                [] if connection is None else connection.execute("SELECT * FROM revisions ORDER BY revision").fetchall()
            )
        return [Revision(*row) for row in rows]

    def last(self) -> Revision | None:
        """The one in force, or that was when the services stopped; None: there never was one."""
        return self._one("SELECT * FROM revisions ORDER BY revision DESC LIMIT 1")

    def get(self, revision: int) -> Revision | None:
        """The revision of this number, if it is remembered."""
        return self._one("SELECT * FROM revisions WHERE revision = ?", revision)

    def knows(self, document: bytes) -> bool:
        """Whether this content was in force once."""
        return self._one("SELECT * FROM revisions WHERE digest = ? LIMIT 1", digest(document)) is not None

    def last_save(self) -> Save | None:
        """What became of the newest save."""
        return self._save("SELECT * FROM saves ORDER BY number DESC LIMIT 1")

    def save_after(self, number: int, digest: str) -> Save | None:
        """What became of the first save of this content after save `number`; None: nothing yet."""
        return self._save("SELECT * FROM saves WHERE number > ? AND digest = ? ORDER BY number LIMIT 1", number, digest)

    def note(self, document: bytes, author: str, message: str) -> None:
        """Who is about to save this document, and why."""
        with self._writing() as connection:
            connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?, ?)", (digest(document), author, message))

    def began(self, revision: int, name: str, document: bytes) -> None:
        """The services start with this revision."""
        with self._writing() as connection:
            self._add(connection, revision, name, document)

    def applied(self, revision: int, name: str, document: bytes) -> None:
        """A save has become this revision."""
        with self._writing() as connection:
            self._add(connection, revision, name, document)
            _add_save(connection, document, revision, "")

    def rejected(self, revision: int, document: bytes, error: str) -> None:
        """A save was not used; `revision` stays in force."""
        with self._writing() as connection:
            connection.execute("DELETE FROM notes WHERE digest = ?", (digest(document),))
            _add_save(connection, document, revision, error)

    @staticmethod
    def _add(connection: sqlite3.Connection, revision: int, name: str, document: bytes) -> None:
        key = digest(document)
        note = connection.execute("SELECT author, message FROM notes WHERE digest = ?", (key,)).fetchone()
        author, message = note or ("", "")
        connection.execute("DELETE FROM notes WHERE digest = ?", (key,))
        connection.execute(
            "INSERT OR IGNORE INTO revisions VALUES (?, ?, ?, ?, ?, ?, ?)",
            (revision, time.time(), name, key, author, message, document),
        )
        connection.execute("DELETE FROM revisions WHERE revision <= ?", (revision - KEPT_REVISIONS,))

    def _one(self, query: str, *values: int | str) -> Revision | None:
        with self._reading() as connection:
            row = None if connection is None else connection.execute(query, values).fetchone()
        return None if row is None else Revision(*row)

    def _save(self, query: str, *values: int | str) -> Save | None:
        with self._reading() as connection:
            row = None if connection is None else connection.execute(query, values).fetchone()
        return None if row is None else Save(*row)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """None while there is no history."""
        if not self.path.exists():
            yield None
            return
        with self._writing() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            with closing(sqlite3.connect(self.path, timeout=BUSY_S)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(TABLES)
                with connection:
                    yield connection
        except (sqlite3.Error, OSError) as error:
            raise HistoryError(f"{self.path}: the history of the policy cannot be used: {error}") from error


def digest(document: bytes) -> str:
    """Names a document's content: 64 hexadecimal digits, of which the first eight will do for people."""
    return hashlib.sha256(document).hexdigest()


def _add_save(connection: sqlite3.Connection, document: bytes, revision: int, error: str) -> None:
    connection.execute(
        "INSERT INTO saves (unix_s, digest, revision, error) VALUES (?, ?, ?, ?)",
        (time.time(), digest(document), revision, error),
    )
    connection.execute("DELETE FROM saves WHERE number <= (SELECT max(number) FROM saves) - ?", (KEPT_SAVES,))
