"""The journal: batches that follow what happens, and what becomes of those that could not be kept."""

import asyncio
import logging
import time

import pytest

from policies.commands import Command, Counted, Refuse, Settle
from policies.events import Woke
from services.admission import journal as journal_module
from services.admission.journal import Journal
from services.admission.store import Batch, StoreError, UsageCell
from services.troubles import Troubles
from services.usage_rows import day_of

pytestmark = pytest.mark.asyncio
ENDED = Settle(1, "acme", 10, 3, "finished", cached_tokens=4)


def used(num_requests: int) -> dict[UsageCell, int]:
    counts = {"requests": 1, "prompt_tokens": 10, "cached_tokens": 4, "output_tokens": 3}
    return {(day_of(time.time()), "acme", name): num_requests * count for name, count in counts.items()}


class Rows:
    """A source with one row, which is whole at first."""

    def __init__(self) -> None:
        self.value = 0
        self.is_whole = True

    def observe(self, now, event, commands) -> None:
        pass

    def take(self) -> tuple[dict[str, bytes | None], bool]:
        is_whole, self.is_whole = self.is_whole, False
        return {"value": b"%d" % self.value}, is_whole

    def not_kept(self) -> None:
        self.is_whole = True


class Disk:
    """A store whose writes wait for the test, or fail."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.allowed = asyncio.Event()
        self.allowed.set()
        self.started = asyncio.Event()
        self.error: StoreError | None = None

    async def save(self, batch: Batch) -> None:
        self.started.set()
        await self.allowed.wait()
        if self.error is not None:
            raise self.error
        self.batches.append(batch)


class Kept:
    def __init__(self, monkeypatch) -> None:
        monkeypatch.setattr(journal_module, "GATHER_S", 0.001)
        monkeypatch.setattr(journal_module, "RETRY_S", 0.001)
        self.rows, self.disk = Rows(), Disk()
        self.ends: list[tuple[int, int]] = []
        self.troubles = Troubles()
        self.journal = Journal(
            self.disk, self.rows, lambda epoch, number: self.ends.append((epoch, number)), self.troubles
        )
        self.journal.start()

    def happens(self, *commands: Command) -> None:
        self.journal.observe(0.0, Woke(), list(commands))


@pytest.fixture
async def kept(monkeypatch):
    made = Kept(monkeypatch)
    yield made
    made.disk.allowed.set()
    await made.journal.close()


async def test_an_end_is_acknowledged_when_the_batch_with_it_is_kept_and_not_before(kept) -> None:
    kept.disk.allowed.clear()
    kept.journal.settled(5, 1)
    kept.happens(ENDED)
    await kept.disk.started.wait()
    assert kept.ends == []
    kept.disk.allowed.set()
    await kept.journal.close()
    assert kept.ends[0] == (5, 1)
    batch = kept.disk.batches[0]
    assert (batch.usage, batch.scheduler_epoch, batch.ends_number) == (used(1), 5, 1)


async def test_what_happens_while_a_batch_is_written_is_in_the_next(kept) -> None:
    kept.disk.allowed.clear()
    kept.happens()
    kept.rows.value = 1
    await kept.disk.started.wait()
    kept.rows.value = 2
    kept.happens()
    kept.disk.allowed.set()
    await kept.journal.close()
    assert [batch.rows for batch in kept.disk.batches] == [{"value": b"1"}, {"value": b"2"}]
    assert [batch.is_whole for batch in kept.disk.batches] == [True, False]


async def test_after_a_batch_that_was_not_kept_the_next_has_everything_and_its_usage(kept, caplog) -> None:
    kept.happens()
    async with asyncio.timeout(10):
        while not kept.disk.batches:  # noqa: ASYNC110  nobody is told of it
            await asyncio.sleep(0)
    kept.disk.error = StoreError("the disk is full")
    kept.happens(ENDED)
    kept.journal.settled(5, 9)
    async with asyncio.timeout(10):
        while "the disk is full" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert kept.ends == []
    assert kept.troubles.sentences == [
        "state: the disk is full; requests go on, and a restart would begin with what was kept before"
    ]
    kept.happens(ENDED, ENDED)
    kept.disk.error = None
    with caplog.at_level(logging.INFO):
        await kept.journal.close()
    assert caplog.text.count("the disk is full") == 1
    assert kept.troubles.sentences == []
    batch = kept.disk.batches[1]
    assert batch.is_whole
    assert batch.usage == used(3)
    assert kept.ends == [(5, 9)]


async def test_what_changed_last_is_kept_when_it_closes(kept) -> None:
    kept.rows.value = 7
    kept.happens()
    await kept.journal.close()
    assert kept.disk.batches[-1].rows == {"value": b"7"}


async def test_a_store_that_hangs_does_not_keep_the_service_from_ending(kept, monkeypatch, caplog) -> None:
    monkeypatch.setattr(journal_module, "CLOSE_S", 0.01)
    kept.disk.allowed.clear()
    kept.happens()
    await kept.journal.close()
    assert "did not keep the last of admission's state" in caplog.text


async def test_refusals_count_by_their_reason_and_what_failed_by_our_fault_is_no_request(kept) -> None:
    kept.happens(
        Refuse(1, "queue_full", "", tenant="acme"),
        Refuse(2, "queue_full", "", tenant="acme"),
        Refuse(3, "rate_limit_exceeded", "", tenant="globex"),
        Settle(4, "acme", 0, 0, "error"),
        Counted(5, tenant="globex"),
    )
    await kept.journal.close()
    counts = {(tenant, counted): count for (_, tenant, counted), count in kept.disk.batches[0].usage.items()}
    assert counts == {
        ("acme", "refused:queue_full"): 2,
        ("globex", "refused:rate_limit_exceeded"): 1,
        ("globex", "refused:invalid_request"): 1,
    }
