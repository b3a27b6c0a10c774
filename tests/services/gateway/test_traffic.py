"""What the gateway records of a request, whatever became of it."""

import asyncio
import time
from collections.abc import Callable

import pytest

from services.gateway.traffic import Traffic
from services.traffic.reading import read_requests
from services.traffic.rows import RequestRow
from services.wire import Refused, RequestEnded, Submit
from services.wire_parts import Measured

pytestmark = pytest.mark.asyncio


async def until(condition: Callable[[], bool]) -> None:
    """The gateway tells nobody what it knows."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def rows(stage, number: int) -> list[RequestRow]:
    """Those of the file, which is closed after so many; closing it again at the test's end does no harm."""
    traffic = stage.gateway._backend._traffic
    await until(lambda: not traffic._open and len(stage.backstage.all_of(Submit)) == number)
    stage.gateway._store.close()
    stage.gateway._store = None
    return read_requests(str(stage.folder), 60)


async def test_a_request_is_recorded_with_its_lengths_and_times_and_without_its_text(stage) -> None:
    def script(submit: Submit) -> None:
        stage.backstage.admit(submit)
        stage.backstage.frame([(submit.request, 300, 0)])
        stage.backstage.frame([(submit.request, 301, 2)])
        measured = Measured("free", 0.25, b"gaps", 16, b"k" * 16)
        stage.backstage.send("scheduler", RequestEnded(submit.request, "finished", 2, measured=measured))

    stage.backstage.script = script
    text = "nobody may find this sentence"
    body = stage.chat(messages=[{"role": "user", "content": text}], max_tokens=7, service_tier="flex", n=1)
    status, document, _ = await stage.post("/v1/chat/completions", body)
    assert status == 200
    (row,) = await rows(stage, 1)
    assert abs(row.unix_s - time.time()) < 10
    assert row[1:] == (
        *("acme", "paid", 2.0, "flex", "", "free", document["usage"]["prompt_tokens"], 7, 1, 2, "finished", ""),
        *(0.25, b"gaps", 16, b"k" * 16, 1, "web", "one"),
    )
    for file in (stage.folder / "traffic").iterdir():
        assert text.encode() not in file.read_bytes()


async def test_a_refused_request_is_recorded_with_the_reason(stage) -> None:
    stage.backstage.script = lambda submit: stage.backstage.send(
        "admission", Refused(submit.request, "queue_full", "full", 1.0)
    )
    status, _, _ = await stage.post("/v1/chat/completions", stage.chat())
    assert status == 429
    (row,) = await rows(stage, 1)
    assert (row.outcome, row.code, row.output_tokens, row.ttft_s) == ("refused", "queue_full", 0, None)


async def test_a_request_whose_client_leaves_is_recorded_once_however_far_it_was(stage) -> None:
    def begin(submit: Submit) -> None:
        if len(stage.backstage.all_of(Submit)) == 2:
            stage.backstage.admit(submit)

    traffic = stage.gateway._backend._traffic
    stage.backstage.script = begin
    waiting, running = stage.connect(), stage.connect()
    loop = asyncio.get_running_loop()
    for bare, number in ((waiting, 1), (running, 2)):
        await loop.sock_sendall(bare, stage.raw_request(stage.chat()))
        submits = await stage.backstage.submitted(number)
    await until(lambda: any(each.admitted for each in stage.gateway._backend.running.values()))
    for bare, submit in zip((waiting, running), submits, strict=True):
        bare.close()
        await stage.backstage.cancelled(submit.request)
    assert list(traffic._open) == [submits[1].request]
    for submit in submits:  # of the first, too late: admission had withdrawn it
        stage.backstage.send(
            "scheduler", RequestEnded(submit.request, "cancelled", 3, "client_gone", "", Measured("all", 0.1))
        )
    found = await rows(stage, 2)
    assert [(row.outcome, row.code, row.output_tokens) for row in found] == [
        ("cancelled", "client_gone", 0),
        ("cancelled", "client_gone", 3),
    ]


async def test_what_is_lost_with_the_scheduler_is_recorded_as_lost(stage) -> None:
    stage.backstage.script = stage.backstage.admit
    asked = asyncio.create_task(stage.post("/v1/chat/completions", stage.chat()))
    await until(lambda: any(each.admitted for each in stage.gateway._backend.running.values()))
    await stage.backstage.lose("scheduler")
    status, _, _ = await asked
    assert status == 502
    (row,) = await rows(stage, 1)
    assert (row.outcome, row.code) == ("lost", "scheduler_lost")


async def test_a_request_that_nobody_heard_of_ends_in_silence() -> None:
    written: list[RequestRow] = []
    traffic = Traffic(written.append)
    traffic.ended(RequestEnded(5, "finished", 1))
    traffic.gone(6, "refused", "queue_full")
    assert written == []
