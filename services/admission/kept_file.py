"""The SQLite file of one admission process: rows of the core, levels of limits, usage, and the newest settled end.

Blocks on the disk; to be called from one thread at a time. Knows no core, no limit and no event loop.
"""

import fcntl
import logging
import os
import sqlite3
import time
from pathlib import Path

from services.admission.store import Batch, Kept, StoreError
from services.runtime import StartError
from services.usage_rows import KEEP_DAYS, day_of
from services.usage_rows import TABLE as USAGE_TABLE

FORMAT = 1
"""Of the file; a later version may convert an earlier one's, and never the other way round."""
TABLES = """
CREATE TABLE IF NOT EXISTS core_row (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS limit_level (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS settled (id INTEGER PRIMARY KEY CHECK (id = 0), epoch INTEGER, number INTEGER);
"""

log = logging.getLogger(__name__)


class KeptFile:
    """Writes batches to a file and reads them back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock: int | None = None
        self._connection: sqlite3.Connection | None = None
        self._pruned = ""
        """The day on which usage that is too old was last removed."""

    def open(self) -> tuple[Kept, dict[str, bytes]]:
        """What is in the file: of the core, and of limits by name. A file that cannot be opened holds nothing, and is
        tried again at each `write`; a broken one is put aside.

        Raises:
            StartError: another process has it, or a later version wrote it.
        """
        try:
            self._claim()
            return self._read(self._connect())
        except sqlite3.OperationalError as error:
            self._fail(error)
        except sqlite3.DatabaseError as error:
            self._put_aside(error)
        except OSError as error:
            self._fail(error)
        return Kept(), {}

    def write(self, batch: Batch, levels: dict[str, bytes | None]) -> None:
        """Add a batch, and these levels of limits, in one transaction that survives a power cut.

        Raises:
            StoreError: nothing of it was added.
        """
        try:
            connection = self._connection or self._connect()
            with connection:
                _write(connection, batch, levels)
                self._prune(connection)
        except (sqlite3.Error, OSError) as error:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            raise StoreError(f"{self._path} cannot be written: {_words(error)}") from error

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _claim(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(
                f"{self._path}: another admission process keeps its state there; give this one another data folder"
            ) from None

    def _connect(self) -> sqlite3.Connection:
        # Made by us before SQLite would, so that nobody else may read it.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(self._path, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            # An end is acknowledged once it is kept: a power cut must not take it back.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA journal_size_limit = 4194304")
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            if found > FORMAT:
                raise StartError(
                    f"{self._path} was written by a later version of Fairlead (format {found}, this one writes"
                    f" {FORMAT}): start that version, or move the file away to begin with nothing"
                )
            connection.executescript(TABLES + USAGE_TABLE)
            connection.execute(f"PRAGMA user_version = {FORMAT}")
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    @staticmethod
    def _read(connection: sqlite3.Connection) -> tuple[Kept, dict[str, bytes]]:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        rows = dict(connection.execute("SELECT name, value FROM core_row"))
        epoch, number = connection.execute("SELECT epoch, number FROM settled").fetchone() or (0, 0)
        levels = dict(connection.execute("SELECT name, value FROM limit_level"))
        return Kept(rows, epoch, number), levels

    def _put_aside(self, error: sqlite3.DatabaseError) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        aside = self._path.with_name(f"{self._path.name}.broken-{time.time_ns()}")
        for end in ("-wal", "-shm", ""):
            broken = self._path.with_name(self._path.name + end)
            if broken.exists():
                broken.replace(aside.with_name(aside.name + end))
        log.error(
            "%s is broken (%s): it is now %s; admission begins with equal counters and full limits",
            self._path,
            error,
            aside.name,
        )

    def _fail(self, error: Exception) -> None:
        log.error(
            "%s cannot be opened: %s; admission begins with equal counters and full limits, and tries again",
            self._path,
            _words(error),
        )

    def _prune(self, connection: sqlite3.Connection) -> None:
        today = day_of(time.time())
        if today != self._pruned:
            # Days that were counted, not days of the calendar: a clock that is years ahead must not cost the bill.
            connection.execute(
                "DELETE FROM usage WHERE day NOT IN (SELECT DISTINCT day FROM usage ORDER BY day DESC LIMIT ?)",
                (KEEP_DAYS,),
            )
            self._pruned = today


def _write(connection: sqlite3.Connection, batch: Batch, levels: dict[str, bytes | None]) -> None:
    if batch.is_whole:
        connection.execute("DELETE FROM core_row")
        connection.execute("DELETE FROM limit_level")
    for table, rows in (("core_row", batch.rows), ("limit_level", levels)):
        gone = [(name,) for name, value in rows.items() if value is None]
        connection.executemany(f"DELETE FROM {table} WHERE name = ?", gone)  # noqa: S608  our own names
        there = [row for row in rows.items() if row[1] is not None]
        connection.executemany(f"REPLACE INTO {table} VALUES (?, ?)", there)  # noqa: S608
    connection.executemany(
        "INSERT INTO usage VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET amount = amount + excluded.amount",
        [(*cell, amount) for cell, amount in batch.usage.items()],
    )
    if batch.scheduler_epoch:
        connection.execute("REPLACE INTO settled VALUES (0, ?, ?)", (batch.scheduler_epoch, batch.ends_number))


def _words(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
