"""The store of one process: limits go on from where they were, as they were when the batch was taken."""

import asyncio
import time

import pytest

from policies.admission.limits.items import LimitItem
from policies.events import OverLimit, Reserved
from services.admission.embedded_store import EmbeddedStore
from services.admission.kept_file import KeptFile
from services.admission.store import Batch
from services.runtime import StartError
from services.usage_rows import FILE

pytestmark = pytest.mark.asyncio
DAILY = LimitItem("tenant", "acme", "total_tokens", "token_bucket", 60, 100, 86_400, 100)
SLOTS = LimitItem("tenant", "acme", "concurrency", "gauge", 1, 2, 60, 2)


class Process:
    """A store and what it answered."""

    def __init__(self, folder) -> None:
        self.answers: list[Reserved | OverLimit] = []
        self.store = EmbeddedStore(str(folder), self.answers.append)

    def passes(self, *items: LimitItem) -> bool:
        self.store.reserve(len(self.answers), items)
        return isinstance(self.answers[-1], Reserved)


@pytest.fixture
async def process(tmp_path):
    opened: list[Process] = []

    async def start() -> Process:
        opened.append(Process(tmp_path))
        await opened[-1].store.open()
        return opened[-1]

    yield start
    await opened[-1].store.close()


async def test_what_was_taken_of_a_limit_is_taken_after_a_restart(process) -> None:
    first = await process()
    assert first.passes(DAILY, SLOTS)
    await first.store.save(Batch({}))
    assert first.passes(SLOTS)
    await first.store.save(Batch({}))
    await first.store.close()
    second = await process()
    assert not second.passes(DAILY)
    assert second.answers[-1].used == 60
    assert not second.passes(SLOTS)
    second.store.adjust(1, ((SLOTS, 0),))
    assert second.passes(SLOTS)


async def test_a_batch_has_the_limits_as_they_were_when_it_was_taken(process) -> None:
    first = await process()
    assert first.passes(SLOTS)
    saving = asyncio.ensure_future(first.store.save(Batch({}, is_whole=True)))
    await asyncio.sleep(0)
    assert first.passes(SLOTS)
    await saving
    await first.store.close()
    second = await process()
    assert second.passes(SLOTS)
    assert not second.passes(SLOTS)


async def test_a_wall_clock_that_is_put_forward_and_back_moves_no_limit(process, monkeypatch) -> None:
    store = await process()
    assert store.passes(DAILY)
    real_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + 86_400 * 10**9)
    assert not store.passes(DAILY)
    monkeypatch.setattr(time, "time_ns", real_ns)
    assert not store.passes(DAILY)
    # 20 of 100 a day are missing.
    assert 17_000 < store.answers[-1].wait_s <= 17_280


async def test_limits_that_cannot_be_read_are_not_taken_for_full_ones(process, tmp_path) -> None:
    file = KeptFile(tmp_path / FILE)
    file.open()
    file.write(Batch({}), {"at_ns": b"\x01", "tenant:acme:nothing:60:magic:": b"\x93\x01\x01\x01"})
    file.close()
    with pytest.raises(StartError, match="move the file away"):
        await process()
