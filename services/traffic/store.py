"""A file of rows that a running service adds to: bounded in age and bytes, written by a thread of its own.

Owns the SQLite file and the thread. Whatever goes wrong with the disk costs rows and one warning, never a request. Does
not know what the rows mean.
"""

import asyncio
import fcntl
import logging
import os
import queue
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from services.settings import TrafficSettings
from services.troubles import TRAFFIC, Troubles

FORMAT = 2
"""Of the file. A file of another format is begun anew: what it holds is not worth converting."""
FLUSH_S = 1.0
MOST_ROWS_WAITING = 20_000
"""A disk that is slower than the traffic costs rows, not memory."""
RETRY_S = 10.0
CLOSE_S = 5.0
PAGE_BYTES = 4096
CATCHES_UP = 2.0
"""Ages are counted by a clock that goes no faster than so many times the one that cannot jump: when the wall clock
leaps, yesterday's rows stay for half of the time that they are kept for, which somebody has to put it right.
"""
AGES = "CREATE TABLE IF NOT EXISTS ages (unix_s REAL NOT NULL)"
"""One row: what that clock said last. Kept in the file, because the wall clock may leap between two processes."""

log = logging.getLogger(__name__)

Row = tuple[Any, ...]


class Table(NamedTuple):
    """A table whose rows begin with the wall time they are about, `unix_s`."""

    name: str
    columns: tuple[str, ...]
    """After `unix_s`: names with SQLite's types."""
    keeps_newest: bool = False
    """The newest row stays whatever its age."""
    most_per_flush: int = MOST_ROWS_WAITING
    """Of more rows between two flushes, only the first are kept: those follow one another."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of all columns."""
        return ("unix_s", *(column.split()[0] for column in self.columns))


class Store:
    """Rows of some tables on their way to a file. `add` is for the event loop's thread."""

    def __init__(self, path: Path, tables: tuple[Table, ...], settings: TrafficSettings, troubles: Troubles) -> None:
        self._path = path
        self._tables = tables
        self._settings = settings
        self._troubles = troubles
        self._waiting: dict[Table, list[Row]] = {}
        self._num_waiting = 0
        self._timer: asyncio.TimerHandle | None = None
        self._lock: int | None = None
        self._connection: sqlite3.Connection | None = None
        self._aged_at = 0.0
        """Monotonic seconds: when the clock of ages was looked at last."""
        self._failed_at: float | None = None
        self._num_lost = 0
        self._queue: queue.SimpleQueue[dict[Table, list[Row]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="traffic", daemon=True)
        self._thread.start()

    def add(self, table: Table, row: Row) -> None:
        """Keep a row; it is written within a second or so."""
        if self._num_waiting >= MOST_ROWS_WAITING:
            self._num_lost += 1
            return
        self._num_waiting += 1
        self._waiting.setdefault(table, []).append(row)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    def close(self) -> None:
        """Write what waits. Returns after five seconds at most, whatever the disk does."""
        if self._timer is not None:
            self._timer.cancel()
            self._flush()
        self._queue.put(None)
        self._thread.join(CLOSE_S)

    def _flush(self) -> None:
        self._timer = None
        # The thread is still at the last batch: this one grows, up to its bound.
        if self._queue.empty():
            self._queue.put(self._waiting)
            self._waiting, self._num_waiting = {}, 0
        else:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush)

    # --- in the thread ------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (batch := self._queue.get()) is not None:
            num_rows = sum(map(len, batch.values()))
            if self._failed_at is not None and time.monotonic() - self._failed_at < RETRY_S:
                self._num_lost += num_rows
                continue
            try:
                if self._connection is None:
                    self._connection = self._open()
                self._write(self._connection, batch)
            except (sqlite3.Error, OSError) as error:
                self._fail(error, num_rows)
            else:
                self._succeed()
        if self._connection is not None:
            self._connection.close()
        if self._lock is not None:
            os.close(self._lock)

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._lock is None:
            self._path, self._lock = _claim(self._path)
        connection = _connect(self._path)
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found not in (0, FORMAT):
            connection.close()
            for end in ("", "-wal", "-shm"):
                self._path.with_name(self._path.name + end).unlink(missing_ok=True)
            connection = _connect(self._path)
        with connection:
            for table in self._tables:
                columns = ", ".join(("unix_s REAL NOT NULL", *table.columns))
                connection.execute(f"CREATE TABLE IF NOT EXISTS {table.name} ({columns})")
                connection.execute(f"CREATE INDEX IF NOT EXISTS {table.name}_by_time ON {table.name} (unix_s)")
            connection.execute(AGES)
            if connection.execute("SELECT count(*) FROM ages").fetchone() == (0,):
                connection.execute("INSERT INTO ages VALUES (?)", (self._newest(connection),))
            connection.execute(f"PRAGMA user_version = {FORMAT}")
        self._aged_at = time.monotonic()
        return connection

    def _write(self, connection: sqlite3.Connection, batch: dict[Table, list[Row]]) -> None:
        with connection:
            for table, rows in batch.items():
                places = ", ".join("?" * len(table.names))
                kept = rows[: table.most_per_flush]
                connection.executemany(f"INSERT INTO {table.name} VALUES ({places})", kept)  # noqa: S608  our own names
            oldest = self._now(connection) - self._settings.keep_s
            for table in self._tables:
                newest = f" AND rowid < (SELECT max(rowid) FROM {table.name})" if table.keeps_newest else ""  # noqa: S608
                connection.execute(f"DELETE FROM {table.name} WHERE unix_s < ?{newest}", (oldest,))  # noqa: S608
        while self._used_bytes(connection) > self._settings.max_bytes:
            with connection:
                largest = max(self._tables, key=lambda table: self._count(connection, table))
                share = self._count(connection, largest) // 8 + 1
                connection.execute(
                    f"DELETE FROM {largest.name} WHERE rowid IN "  # noqa: S608
                    f"(SELECT rowid FROM {largest.name} ORDER BY unix_s LIMIT {share})"
                )
            # A script, because `execute` would take one step of it and free one page.
            connection.executescript("PRAGMA incremental_vacuum")

    def _now(self, connection: sqlite3.Connection) -> float:
        """By the clock of ages, which goes on by this."""
        (before,) = connection.execute("SELECT unix_s FROM ages").fetchone()
        at = time.monotonic()
        now = min(time.time(), before + CATCHES_UP * (at - self._aged_at))
        self._aged_at = at
        connection.execute("UPDATE ages SET unix_s = ?", (now,))
        return float(now)

    def _newest(self, connection: sqlite3.Connection) -> float:
        """Time of the newest row; of an empty file, now."""
        names = [table.name for table in self._tables]
        found = [connection.execute(f"SELECT max(unix_s) FROM {name}").fetchone()[0] for name in names]  # noqa: S608
        return max((float(unix_s) for unix_s in found if unix_s is not None), default=time.time())

    @staticmethod
    def _used_bytes(connection: sqlite3.Connection) -> int:
        (pages,), (unused,) = (
            connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "freelist_count")
        )
        return int(pages - unused) * PAGE_BYTES

    @staticmethod
    def _count(connection: sqlite3.Connection, table: Table) -> int:
        (count,) = connection.execute(f"SELECT count(*) FROM {table.name}").fetchone()  # noqa: S608
        return int(count)

    def _fail(self, error: Exception, num_rows: int) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        sentence = f"{self._path} cannot be written: {error}; requests go on, what they were is not recorded"
        self._troubles.begin(TRAFFIC, sentence)
        self._failed_at = time.monotonic()
        self._num_lost += num_rows

    def _succeed(self) -> None:
        self._troubles.over(TRAFFIC, f"{self._path} is written again; {self._num_lost} rows were lost")
        self._failed_at, self._num_lost = None, 0


def open_store(
    data: str, service: str, tables: tuple[Table, ...], settings: TrafficSettings, troubles: Troubles
) -> Store | None:
    """The store of a process of this service; None where nothing is to be recorded."""
    return Store(folder(data) / f"{service}.sqlite", tables, settings, troubles) if settings.keep_s else None


def folder(data: str) -> Path:
    """Where the stores of a data folder are."""
    return Path(data) / "traffic"


def _claim(path: Path) -> tuple[Path, int]:
    """The first file of this name that no other process writes, and its lock: `gateway.sqlite`, `gateway-2.sqlite`."""
    number = 1
    while True:
        candidate = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        descriptor = os.open(candidate.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            number += 1
        else:
            return candidate, descriptor


def _connect(path: Path) -> sqlite3.Connection:
    # Made by us before SQLite would, so that nobody else may read it.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    # Readers do not wait for the writer; a power cut costs the last seconds, never the file.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA journal_size_limit = 4194304")
    return connection
