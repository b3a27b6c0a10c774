"""The shared store over a real Redis server: what survives, what is shared, and what happens without it."""

import asyncio
import re
import shlex
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from policies.admission.limits.items import LimitItem
from policies.events import OverLimit, Reserved, StoreReach
from services.admission.redis_operations import ExchangeOperation
from services.admission.redis_store import RedisStore
from services.admission.store import Batch, Kept, StoreError
from services.runtime import StartError
from services.settings import Deployment, OutageSettings, SharedStoreSettings
from services.stream_settings import StreamSettings
from services.troubles import Troubles
from services.usage_rows import day_of

pytestmark = pytest.mark.redis

ENOUGH_S = 20.0
PATIENT = SharedStoreSettings(flush_s=0.01, answer_s=10.0, stale_ok_s=ENOUGH_S, lease_s=2 * ENOUGH_S)
"""A machine that stands still for seconds is no outage."""
IMPATIENT = msgspec.structs.replace(PATIENT, answer_s=0.2)
BUCKET = LimitItem("tenant", "acme", "total_tokens", "token_bucket", 10, 100, 86400, 100)
RUNNING = LimitItem("tenant", "acme", "concurrency", "gauge", 1, 3)


class NobodyElse:
    """Shares no counters."""

    def changed(self, names: Any) -> None:
        self.names = list(names)

    def ask(self, fresh_ms: int) -> ExchangeOperation:
        return ExchangeOperation(0, [], [], fresh_ms)

    def told(self, answer: Any, num_replicas: int) -> None:
        return None

    def forgotten(self) -> None:
        return None


class Heard:
    """What a store has answered."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self._more = asyncio.Event()

    def __call__(self, event: Any) -> None:
        self.events.append(event)
        self._more.set()

    async def reach(self) -> StoreReach:
        """The next that it says of the server."""
        return await self.first(lambda event: isinstance(event, StoreReach))

    async def outage(self) -> StoreReach:
        """The next that lasts too long; what was over sooner, on a machine that stood still, is forgotten."""
        found: StoreReach = await self.first(lambda event: isinstance(event, StoreReach) and event.lost_s)
        self.events = [event for event in self.events if not isinstance(event, StoreReach)]
        return found

    async def first(self, wanted: Callable[[Any], bool]) -> Any:
        """The oldest that is wanted, which is heard no more then."""
        async with asyncio.timeout(ENOUGH_S):
            while True:
                for event in self.events:
                    if wanted(event):
                        self.events.remove(event)
                        return event
                self._more.clear()
                await self._more.wait()

    async def until(self, num_events: int) -> list[Any]:
        async with asyncio.timeout(ENOUGH_S):
            while len(self.events) < num_events:
                self._more.clear()
                await self._more.wait()
        return self.events


class Process:
    """A store as an admission process has it."""

    def __init__(self, url: str, instance: str, settings: SharedStoreSettings) -> None:
        self.heard = Heard()
        self.troubles = Troubles()
        deployment = Deployment(store=url, shared_store=settings)
        self.store = RedisStore(deployment, instance, self.heard, NobodyElse(), self.troubles)
        self.kept = Kept()
        self._requests = 0

    async def asks(self, *items: LimitItem) -> Any:
        self._requests += 1
        request = self._requests
        # A store without its server answers at once: whoever asks again and again must let the loop find the server.
        await asyncio.sleep(0)
        self.store.reserve(request, items)
        return await self.heard.first(lambda event: getattr(event, "request", None) == request)


@asynccontextmanager
async def a_process(
    server: Any, instance: str = "1", settings: SharedStoreSettings = PATIENT
) -> AsyncIterator[Process]:
    async with asyncio.timeout(ENOUGH_S):
        while True:
            process = Process(server.url, instance, settings)
            try:
                process.kept = await process.store.open()
                break
            except StartError:
                pass  # an impatient one on a machine that stood still
    try:
        yield process
    finally:
        await process.store.close()


async def a_dying_process(server: Any, *asked: LimitItem) -> Process:
    """It has reserved these and is killed before anything of it is kept."""
    process = Process(server.url, "1", PATIENT)
    await process.store.open()
    assert isinstance(await process.asks(*asked), Reserved)
    await killed(process)
    return process


async def killed(process: Process) -> None:
    assert process.store._task is not None
    process.store._task.cancel()
    await process.store._connection.close()


def left(answer: Any) -> int:
    return int(answer.limits[0].remaining)


async def test_what_was_kept_is_there_for_the_next_process_of_the_instance(redis_server: Any) -> None:
    epoch = 1_795_000_000_123_456_789
    async with a_process(redis_server) as first:
        assert first.kept == Kept()
        await first.store.save(Batch({"core": b"\xff\x00", "node:a b": b"1"}, is_whole=True))
        await first.store.save(Batch({"node:a b": None, "node:c": b"2"}, scheduler_epoch=epoch, ends_number=7))
    async with a_process(redis_server) as second:
        assert second.kept == Kept({"core": b"\xff\x00", "node:c": b"2"}, epoch, 7)
        await second.store.save(Batch({"core": b"3"}, is_whole=True))
    async with a_process(redis_server) as third, a_process(redis_server, instance="2") as other:
        assert third.kept.rows == {"core": b"3"}
        assert other.kept == Kept()


async def test_usage_of_all_replicas_is_added_up_by_day_and_tenant(redis_server: Any) -> None:
    async with a_process(redis_server) as one, a_process(redis_server, instance="2") as two:
        today = day_of(time.time())
        today = day_of(time.time())
        await one.store.save(Batch({}, usage={(today, "acme", "requests"): 2, (today, "b: c", "requests"): 1}))
        await two.store.save(Batch({}, usage={(today, "acme", "requests"): 3, ("2020-01-01", "acme", "requests"): 9}))
        rows = await two.store.usage("", 2)
        assert [(row.tenant, row.counts) for row in rows] == [("acme", {"requests": 5}), ("b: c", {"requests": 1})]
        assert [row.tenant for row in await one.store.usage("b: c", 1)] == ["b: c"]


async def test_two_replicas_take_from_one_limit(redis_server: Any) -> None:
    async with a_process(redis_server) as one, a_process(redis_server, instance="2") as two:
        assert [left(await process.asks(BUCKET)) for process in (one, two, one, two)] == [90, 80, 70, 60]
        two.store.adjust(2, ((BUCKET, 4),))
        assert left(await two.asks(BUCKET)) == 56
        over = await one.asks(msgspec.structs.replace(BUCKET, amount=60))
        assert isinstance(over, OverLimit)
        assert (over.used, left(over)) == (44, 56)


async def test_answers_come_in_the_order_of_the_questions(redis_server: Any) -> None:
    async with a_process(redis_server) as process:
        for request in range(50):
            process.store.reserve(request, (BUCKET,))
        answers = await process.heard.until(50)
        assert [answer.request for answer in answers] == list(range(50))
        assert [type(answer) for answer in answers] == [Reserved] * 10 + [OverLimit] * 40


async def test_what_a_process_reserved_and_no_row_says_goes_back_when_its_instance_starts_again(
    redis_server: Any,
) -> None:
    await a_dying_process(redis_server, BUCKET, RUNNING)
    async with a_process(redis_server) as second:
        assert left(await second.asks(BUCKET)) == 90
        assert left(await second.asks(RUNNING)) == 2


async def test_what_rows_say_stays_reserved_when_the_instance_starts_again(redis_server: Any) -> None:
    first = Process(redis_server.url, "1", PATIENT)
    await first.store.open()
    await first.asks(BUCKET, RUNNING)
    await first.store.save(Batch({"core": b"1"}))
    await killed(first)
    async with a_process(redis_server) as second:
        assert left(await second.asks(BUCKET)) == 80
        assert left(await second.asks(RUNNING)) == 1
        # As the core that was restored says when the request has ended.
        second.store.adjust(1, ((BUCKET, 0), (RUNNING, 0)))
        assert left(await second.asks(BUCKET)) == 80
        assert left(await second.asks(RUNNING)) == 1


async def test_what_a_lost_replica_held_is_free_once_its_lease_is_over(redis_server: Any) -> None:
    one = Process(redis_server.url, "1", PATIENT)
    await one.store.open()
    async with a_process(redis_server, instance="2") as two:
        for _ in range(3):
            assert isinstance(await one.asks(RUNNING), Reserved)
        over = await two.asks(RUNNING)
        assert isinstance(over, OverLimit)
        assert over.wait_s is None
        # Shorter from here on, so that nobody has to wait: until now a machine that stood still cost it no lease.
        one.store._session = one.store._session._replace(lease_s=0.5)
        assert isinstance(await one.asks(RUNNING), OverLimit)
        await killed(one)
        async with asyncio.timeout(ENOUGH_S):
            while isinstance(await two.asks(RUNNING), OverLimit):
                pass


async def test_a_frozen_server_is_done_without_and_told_afterwards(redis_server: Any) -> None:
    async with a_process(redis_server, "1", IMPATIENT) as process, a_process(redis_server, "2", IMPATIENT) as other:
        assert left(await process.asks(BUCKET, RUNNING)) == 90
        redis_server.signal(signal.SIGSTOP)
        # The first is on its way when the server freezes: it is done there later, and here at once.
        assert [left(await process.asks(BUCKET, RUNNING)) for _ in range(2)] == [80, 70]
        assert isinstance(await process.asks(RUNNING), OverLimit)
        process.store.adjust(2, ((BUCKET, 0), (RUNNING, 0)))
        assert left(await process.asks(BUCKET)) == 70
        saved = asyncio.create_task(process.store.save(Batch({"core": b"later"})))
        redis_server.signal(signal.SIGCONT)
        async with asyncio.timeout(ENOUGH_S):
            await saved
        assert await process.heard.reach() == StoreReach()
        if other.store.out_of_reach_s:
            assert await other.heard.reach() == StoreReach()
        assert left(await process.asks(msgspec.structs.replace(BUCKET, amount=1))) == 69
        assert left(await other.asks(BUCKET)) == 59
        assert left(await other.asks(RUNNING)) == 0


async def test_after_too_long_without_the_server_the_core_is_told_to_refuse_until_it_is_back(
    redis_server: Any,
) -> None:
    settings = msgspec.structs.replace(IMPATIENT, stale_ok_s=0.5)
    async with a_process(redis_server, "1", settings) as process:
        redis_server.signal(signal.SIGSTOP)
        refuses = await process.heard.outage()
        assert refuses.refuses == "limited"
        assert refuses.lost_s > 0
        redis_server.signal(signal.SIGCONT)
        assert await process.heard.reach() == StoreReach()


async def test_what_is_refused_without_the_server_is_what_the_settings_say(redis_server: Any) -> None:
    closed, opened = (
        msgspec.structs.replace(IMPATIENT, stale_ok_s=0.5, fail=OutageSettings(limits=fail, fairness=fail))
        for fail in ("closed", "open")
    )
    async with a_process(redis_server, "1", closed) as one, a_process(redis_server, "2", opened) as two:
        redis_server.signal(signal.SIGSTOP)
        assert (await one.heard.outage()).refuses == "all"
        assert (await two.heard.outage()).refuses == "nothing"
        assert isinstance(await two.asks(BUCKET), Reserved)
        redis_server.signal(signal.SIGCONT)


async def test_a_killed_server_comes_back_with_what_it_had(redis_server: Any) -> None:
    async with a_process(redis_server) as process:
        await process.asks(BUCKET, RUNNING)
        await process.store.save(Batch({"core": b"1"}))
        redis_server.signal(signal.SIGKILL)
        assert left(await process.asks(BUCKET, RUNNING)) == 80
        redis_server.start()
        await process.store.save(Batch({"node:a": b"2"}))
        assert left(await process.asks(BUCKET)) == 70
        assert left(await process.asks(RUNNING)) == 0
    async with a_process(redis_server) as second:
        assert second.kept.rows == {"core": b"1", "node:a": b"2"}


async def test_a_server_that_lost_everything_is_given_everything_again(redis_server: Any, caplog: Any) -> None:
    async with a_process(redis_server) as process:
        await process.asks(RUNNING)
        await process.store.save(Batch({"core": b"1"}, is_whole=True))
        with redis_server.client() as client:
            client.flushall()
        with pytest.raises(StoreError, match="has lost what it kept"):
            await process.store.save(Batch({"node:a": b"2"}))
        await process.store.save(Batch({"core": b"1", "node:a": b"2"}, is_whole=True))
        assert left(await process.asks(RUNNING)) == 1
        assert "has lost what it was told last, or all" in caplog.text


async def test_a_server_that_came_back_as_it_was_before_is_given_everything_again(redis_server: Any) -> None:
    async with a_process(redis_server) as process:
        await process.store.save(Batch({"core": b"1"}, is_whole=True))
        with redis_server.client() as client:
            [last] = client.keys("*last:1")
            client.hset(last, "batch", "an earlier one")
        with pytest.raises(StoreError, match="has lost what it kept"):
            await process.store.save(Batch({"node:a": b"2"}))
        await process.store.save(Batch({"core": b"1", "node:a": b"2"}, is_whole=True))


async def test_a_store_that_is_not_there_is_named_without_its_password() -> None:
    nowhere = Deployment(
        store="redis://:hunter2@127.0.0.1:1/0", shared_store=msgspec.structs.replace(IMPATIENT, stale_ok_s=0.0)
    )
    with pytest.raises(StartError, match=r"redis://\.\.\.@127\.0\.0\.1:1/0 cannot be used") as raised:
        await RedisStore(nowhere, "1", Heard(), NobodyElse(), Troubles()).open()
    assert "hunter2" not in str(raised.value)


REFUSED = {
    "full": ((b"CONFIG SET maxmemory 1",), (b"CONFIG SET maxmemory 0",), "OOM|used memory > 'maxmem"),
    "a replica": ((b"REPLICAOF 127.0.0.1 1",), (b"REPLICAOF NO ONE",), "read only replica|READONLY"),
    "locked": (
        (b"CONFIG SET requirepass hunter2", b"CLIENT KILL TYPE normal SKIPME yes"),
        (b"AUTH hunter2", b'CONFIG SET requirepass ""'),
        "Authentication required|already authenticated",
    ),
}


@pytest.mark.parametrize("state", REFUSED)
async def test_a_server_that_refuses_is_done_without_and_told_afterwards(redis_server: Any, state: str) -> None:
    spoil, mend, reason = REFUSED[state]
    async with a_process(redis_server, "1", PATIENT) as process:
        assert left(await process.asks(BUCKET)) == 90
        with redis_server.client() as client:
            for command in spoil:
                client.execute_command(*shlex.split(command.decode()))
        try:
            assert [left(await process.asks(BUCKET)) for _ in range(2)] == [80, 70]
            async with asyncio.timeout(ENOUGH_S):
                while not re.search(f"is out of reach .*({reason})", "".join(process.troubles.sentences)):
                    assert left(await process.asks(msgspec.structs.replace(BUCKET, amount=0))) == 70
        finally:
            with redis_server.client(password="hunter2" if state == "locked" else None) as client:
                for command in mend:
                    client.execute_command(*shlex.split(command.decode()))
        assert await process.heard.reach() == StoreReach()
        assert process.troubles.sentences == []
        assert left(await process.asks(BUCKET)) == 60
    async with a_process(redis_server, "2", PATIENT) as other:
        assert left(await other.asks(BUCKET)) == 50


async def test_a_store_beyond_this_machine_is_not_spoken_to_in_the_clear() -> None:
    clear = Deployment(store="redis://cache.example:6379/0", shared_store=PATIENT)
    with pytest.raises(StartError, match=r"redis://cache\.example:6379/0 would be spoken to unencrypted.*rediss://"):
        RedisStore(clear, "1", Heard(), NobodyElse(), Troubles())
    allowed = msgspec.structs.replace(clear, streams=StreamSettings(allow_plaintext=True))
    for fine in (allowed, msgspec.structs.replace(clear, store="rediss://cache.example:6379/0")):
        await RedisStore(fine, "1", Heard(), NobodyElse(), Troubles()).close()


async def test_a_server_is_reached_by_tls_and_password_and_a_false_one_is_not(guarded: Any, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("hunter2\n")
    slowly = msgspec.structs.replace(PATIENT, password_file=str(password))  # it is only starting
    settings = msgspec.structs.replace(slowly, stale_ok_s=0.0)
    process = Process(f"{guarded.url}{guarded.trusted}", "1", slowly)
    await process.store.open()
    assert left(await process.asks(BUCKET)) == 90
    await process.store.close()
    with pytest.raises(StartError, match=r"CERTIFICATE_VERIFY_FAILED|certificate verify failed"):
        await Process(f"{guarded.url}{guarded.other}", "1", settings).store.open()
    password.write_text("hunter3\n")
    with pytest.raises(StartError, match="invalid username-password pair") as raised:
        await Process(f"{guarded.url}{guarded.trusted}", "1", settings).store.open()
    assert "hunter" not in str(raised.value)
