import asyncio
import logging
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from services.settings import TrafficSettings
from services.traffic import store
from services.traffic.reading import TrafficError, read_requests
from services.traffic.rows import GATEWAY, REQUESTS, RequestRow
from services.traffic.store import Store, Table, open_store
from services.troubles import Troubles


def row(unix_s: float, prompt_keys: bytes = b"") -> RequestRow:
    return RequestRow(
        unix_s, "acme", "free", 1.0, None, "", "free", 20, 8, 1, 8, "finished", "", 0.5, b"", 16, prompt_keys, 1
    )


@pytest.fixture
def settings() -> TrafficSettings:
    return TrafficSettings(keep_s=3600, max_bytes=2**20)


def opened(data: Path, settings: TrafficSettings) -> Store:
    made = open_store(str(data), GATEWAY, (REQUESTS,), settings, Troubles())
    assert made is not None
    return made


async def test_rows_come_back_by_arrival_from_the_files_of_all_gateways(tmp_path, settings, monkeypatch) -> None:
    monkeypatch.setattr(store, "FLUSH_S", 0.001)
    now = time.time()
    first, second = opened(tmp_path, settings), opened(tmp_path, settings)
    first.add(REQUESTS, row(now + 2))
    while not read_requests(str(tmp_path), 60):  # noqa: ASYNC110  what is awaited is the work of a thread
        await asyncio.sleep(0.001)
    second.add(REQUESTS, row(now + 1))
    first.add(REQUESTS, row(now - 100))
    second.close()
    first.close()
    assert [path.name for path in sorted(store.folder(str(tmp_path)).glob("*.sqlite"))] == [
        "gateway-2.sqlite",
        "gateway.sqlite",
    ]
    assert [found.unix_s for found in read_requests(str(tmp_path), 60)] == [now + 1, now + 2]
    assert [found.unix_s for found in read_requests(str(tmp_path), 1000)] == [now - 100, now + 1, now + 2]


async def test_the_next_process_goes_on_with_the_file_and_nobody_else_may_read_it(tmp_path, settings) -> None:
    now = time.time()
    for number in range(2):
        writer = opened(tmp_path, settings)
        writer.add(REQUESTS, row(now + number))
        writer.close()
    assert len(read_requests(str(tmp_path), 60)) == 2
    (file,) = store.folder(str(tmp_path)).glob("*.sqlite")
    assert file.stat().st_mode & 0o077 == 0


async def test_what_is_too_old_goes_and_the_newest_fleet_stays(tmp_path, settings) -> None:
    now = time.time()
    kept = Table("fleets", ("word TEXT",), keeps_newest=True)
    writer = Store(tmp_path / "some.sqlite", (REQUESTS, kept), settings, Troubles())
    for age_s in (5000, 4000):
        writer.add(REQUESTS, row(now - age_s))
        writer.add(kept, (now - age_s, f"{age_s}"))
    writer.add(REQUESTS, row(now))
    writer.close()
    with sqlite3.connect(tmp_path / "some.sqlite") as connection:
        assert connection.execute("SELECT unix_s FROM requests").fetchall() == [(now,)]
        assert connection.execute("SELECT word FROM fleets").fetchall() == [("4000",)]
    connection.close()


class Clocks:
    """Of the wall, which may leap, and of the time that passes."""

    def __init__(self) -> None:
        self.wall_s = time.time()
        self.passed_s = 100.0

    def time(self) -> float:
        return self.wall_s

    def monotonic(self) -> float:
        return self.passed_s

    def pass_(self, seconds: float) -> None:
        self.wall_s += seconds
        self.passed_s += seconds


async def test_a_clock_that_leaps_forward_deletes_nothing_before_half_of_its_time_has_passed(
    tmp_path, settings, monkeypatch
) -> None:
    clocks = Clocks()
    monkeypatch.setattr(store, "time", clocks)
    began_s = clocks.wall_s

    def written(*pauses_h: float) -> list[float]:
        """Rows that there are, in hours since it began, after a process has written one after each of these pauses."""
        writer = opened(tmp_path, settings)
        with closing(writer._open()) as connection:
            for pause_h in pauses_h:
                clocks.pass_(pause_h * 3600)
                writer._write(connection, {REQUESTS: [row(clocks.wall_s)]})
        writer.close()
        return [round((each.unix_s - began_s) / 3600, 2) for each in read_requests(str(tmp_path), 1e9)]

    assert written(0.0) == [0.0]
    clocks.wall_s += 86_400
    # Neither a process that runs nor its successor takes the day for one that has passed.
    assert written(0.1, 0.1) == [0.0, 24.1, 24.2]
    assert written(0.1, 0.15) == [0.0, 24.1, 24.2, 24.3, 24.45]
    # What would have been kept for half of its time goes, if the clock is still not put right.
    assert written(0.1) == [24.1, 24.2, 24.3, 24.45, 24.55]


async def test_a_file_keeps_to_its_size_and_loses_the_oldest(tmp_path, settings) -> None:
    now = time.time()
    for batch in range(4):
        writer = opened(tmp_path, settings)
        for number in range(1000):
            writer.add(REQUESTS, row(now - 2000 + 1000 * batch / 4 + number / 1000, bytes(1000)))
        writer.close()
    found = read_requests(str(tmp_path), 1e6)
    assert 300 < len(found) < 1200
    assert found[-1].unix_s == pytest.approx(now - 1249, abs=0.01)
    (file,) = store.folder(str(tmp_path)).glob("*.sqlite")
    assert file.stat().st_size < 2**20 + 2**17


async def test_of_more_rows_than_a_table_takes_at_once_the_first_are_kept(tmp_path, settings) -> None:
    few = Table("few", ("number INTEGER",), most_per_flush=5)
    writer = Store(tmp_path / "few.sqlite", (few,), settings, Troubles())
    for number in range(20):
        writer.add(few, (time.time(), number))
    writer.close()
    with sqlite3.connect(tmp_path / "few.sqlite") as connection:
        assert connection.execute("SELECT number FROM few").fetchall() == [(0,), (1,), (2,), (3,), (4,)]
    connection.close()


async def test_a_disk_that_cannot_be_written_costs_rows_and_one_error(tmp_path, settings, monkeypatch, caplog) -> None:
    monkeypatch.setattr(store, "RETRY_S", 0.0)
    caplog.set_level(logging.INFO)
    blocked = tmp_path / "traffic"
    blocked.write_text("a file where the folder should be")
    writer = opened(tmp_path, settings)
    for _ in range(3):
        writer.add(REQUESTS, row(time.time()))
        writer._flush()
        while not writer._queue.empty():  # noqa: ASYNC110  the thread's turn
            await asyncio.sleep(0.001)
    blocked.unlink()
    writer.add(REQUESTS, row(time.time()))
    writer.close()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(warnings) == 1
    assert "cannot be written" in warnings[0]
    assert "is written again; 3 rows were lost" in caplog.text
    assert len(read_requests(str(tmp_path), 60)) == 1


async def test_a_disk_that_is_slower_than_the_traffic_costs_rows_not_memory(tmp_path, settings, monkeypatch) -> None:
    monkeypatch.setattr(store, "MOST_ROWS_WAITING", 10)
    writer = opened(tmp_path, settings)
    for _ in range(50):
        writer.add(REQUESTS, row(time.time()))
    writer.close()
    assert len(read_requests(str(tmp_path), 60)) == 10


async def test_a_file_of_another_format_is_begun_anew(tmp_path, settings) -> None:
    folder = store.folder(str(tmp_path))
    folder.mkdir()
    with sqlite3.connect(folder / "gateway.sqlite") as connection:
        connection.execute("CREATE TABLE requests (other TEXT)")
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert read_requests(str(tmp_path), 60) == []
    writer = opened(tmp_path, settings)
    writer.add(REQUESTS, row(time.time()))
    writer.close()
    assert len(read_requests(str(tmp_path), 60)) == 1


async def test_a_file_that_is_no_store_is_named(tmp_path, settings) -> None:
    folder = store.folder(str(tmp_path))
    folder.mkdir()
    (folder / "gateway.sqlite").write_bytes(b"not a database at all" * 100)
    with pytest.raises(TrafficError, match=r"gateway\.sqlite: the recorded traffic cannot be read"):
        read_requests(str(tmp_path), 60)


def test_nothing_is_recorded_where_nothing_is_to_be_kept(tmp_path) -> None:
    assert open_store(str(tmp_path), GATEWAY, (REQUESTS,), TrafficSettings(keep_s=0), Troubles()) is None
    assert list(tmp_path.iterdir()) == []
