"""What a gateway does with its requests when it loses a service, against a double that keeps what it sends."""

import asyncio
from array import array
from typing import Any

import pytest
from msgspec.structs import replace

from policies.commands import FinishReason
from services.gateway import resuming
from services.gateway.resuming import MOST_IN_VAIN
from services.traffic.reading import read_requests
from services.wire import Admitted, Cancel, RequestEnded, Submit
from services.wire_parts import Measured

CHAT = "/v1/chat/completions"
LENGTH = int(FinishReason.LENGTH)


@pytest.fixture
async def patient(stage: Any) -> Any:
    """A stage whose admission and scheduler take requests that were sent before."""
    stage.backstage.capacity = replace(stage.backstage.capacity, resumes=True)
    for service in ("admission", "scheduler"):
        stage.backstage.send(service, stage.backstage.capacity)
    await both_have_said(stage)
    return stage


async def both_have_said(stage: Any) -> None:
    backend = stage.gateway._backend
    await looked(lambda: sum(filter(None, backend._neighbours._resumes.values())) == 2)


async def looked(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  nothing signals it
            await asyncio.sleep(0)


async def begun(stage: Any, num_tokens: int, **body: Any) -> tuple["asyncio.Task[Any]", Submit]:
    """A request of which every choice has so many tokens."""
    answer = asyncio.create_task(stage.post(CHAT, stage.chat(**body)))
    (submit,) = await stage.backstage.submitted()
    stage.backstage.admit(submit)
    for number in range(num_tokens):
        stage.backstage.frame([(submit.request + choice, 70 + number, 0) for choice in range(len(submit.sampling))])
    running = stage.gateway._backend.running[submit.request]
    await looked(lambda: running.num_tokens == num_tokens * len(submit.sampling) and not running.answer.unheard)
    return answer, submit


def ids(outputs: list[bytes]) -> list[list[int]]:
    return [array("i", output).tolist() for output in outputs]


async def test_a_stream_to_the_scheduler_that_breaks_has_the_rest_made_by_a_further_attempt(patient: Any) -> None:
    answer, submit = await begun(patient, 3, n=2)
    patient.backstage.frame([(submit.request + 1, 80, LENGTH)], [(submit.request, 2)])
    patient.backstage.streams["scheduler"].close()
    _, again = await patient.backstage.submitted(2)
    assert (again.request, again.attempt, again.resent, again.ended) == (submit.request, 1, True, [1])
    assert ids(again.outputs) == [[70, 71, 72], [70, 71, 72, 80]]
    assert (again.sampling, again.cached_tokens) == (submit.sampling, 2)
    # Of the attempt before: it was on its way when the stream broke.
    patient.backstage.send("admission", Admitted(submit.request, "all", 1, 1, 2))
    patient.backstage.send("admission", Admitted(submit.request, "all", 1, 1, 2, attempt=1))
    patient.backstage.frame([(submit.request, 73, LENGTH)])
    status, document, _ = await answer
    assert (status, document["usage"]["completion_tokens"]) == (200, 8)
    assert patient.gateway._backend.num_resumed == 1


async def test_admission_that_breaks_off_gets_again_what_waited_and_nothing_of_what_runs(patient: Any) -> None:
    running, first = await begun(patient, 2)
    waiting = asyncio.create_task(patient.post(CHAT, patient.chat()))
    _, second = await patient.backstage.submitted(2)
    patient.backstage.streams["admission"].close()
    await looked(lambda: patient.gateway._backend.running[second.request].is_parked)
    await patient.backstage.until(lambda: "admission" in patient.backstage.streams)
    patient.backstage.send("admission", patient.backstage.capacity)
    *_, again = await patient.backstage.submitted(3)
    assert (again.request, again.resent, again.attempt, again.outputs) == (second.request, True, 0, [])
    assert again.received_ns == second.received_ns
    for request, number in ((first.request, 72), (second.request, 70)):
        patient.backstage.frame([(request, number, LENGTH)])
    assert [(await each)[0] for each in (running, waiting)] == [200, 200]


async def test_a_scheduler_of_the_version_before_is_not_asked_to_go_on(patient: Any) -> None:
    answer, _ = await begun(patient, 2)
    patient.backstage.capacity = replace(patient.backstage.capacity, resumes=False)
    patient.backstage.streams["scheduler"].close()
    status, document, _ = await answer
    assert (status, document["error"]["code"]) == (502, "scheduler_lost")
    assert len(patient.backstage.all_of(Submit)) == 1


async def test_a_request_that_admission_knows_nobody_to_compute_is_sent_again_unless_tokens_say_otherwise(
    patient: Any,
) -> None:
    answer, submit = await begun(patient, 0)
    patient.backstage.send("admission", RequestEnded(submit.request, "error", 0, "admission_lost"))
    _, again = await patient.backstage.submitted(2)
    assert (again.request, again.attempt) == (submit.request, 1)
    patient.backstage.frame([(submit.request, 70, 0)])
    running = patient.gateway._backend.running[submit.request]
    await looked(lambda: running.num_tokens == 1)
    patient.backstage.send("admission", RequestEnded(submit.request, "error", 0, "admission_lost", attempt=1))
    patient.backstage.send("admission", RequestEnded(submit.request + 9, "error", 0, "admission_lost"))
    # Whoever left is cancelled; this also says that the message before has been read.
    await patient.backstage.until(lambda: patient.backstage.all_of(Cancel))
    assert patient.backstage.all_of(Cancel)[0].request == submit.request + 9
    assert len(patient.backstage.all_of(Submit)) == 2
    patient.backstage.frame([(submit.request, 71, LENGTH)])
    assert (await answer)[0] == 200


async def test_admission_is_told_of_what_a_lost_scheduler_had_finished(patient: Any) -> None:
    answer, submit = await begun(patient, 3)
    patient.backstage.frame([(submit.request, 73, LENGTH)])
    assert (await answer)[0] == 200
    await patient.backstage.lose("scheduler")
    (ended,) = await patient.backstage.until(lambda: patient.backstage.all_of(RequestEnded, "admission"))
    assert (ended.request, ended.outcome, ended.output_tokens) == (submit.request, "finished", 4)


async def test_admission_is_told_of_it_when_it_is_back_if_it_was_lost_too(patient: Any) -> None:
    answer, submit = await begun(patient, 3)
    patient.backstage.frame([(submit.request, 73, LENGTH)])
    assert (await answer)[0] == 200
    patient.backstage.streams["admission"].close()
    await looked(lambda: not patient.gateway._backend._neighbours.has("admission"))
    patient.backstage.streams["scheduler"].close()
    await looked(lambda: patient.gateway._backend._resuming._owed)
    await patient.backstage.until(lambda: "admission" in patient.backstage.streams)
    assert patient.backstage.all_of(RequestEnded, "admission") == []
    patient.backstage.send("admission", patient.backstage.capacity)
    (ended,) = await patient.backstage.until(lambda: patient.backstage.all_of(RequestEnded, "admission"))
    assert (ended.request, ended.outcome, ended.output_tokens) == (submit.request, "finished", 4)


@pytest.mark.parametrize("by", ["the scheduler", "the gateway, and was lost with what it said"])
async def test_admission_that_missed_an_end_is_told_of_it_when_it_finds_nobody_who_has_the_request(
    patient: Any, by: str
) -> None:
    answer, submit = await begun(patient, 3)
    patient.backstage.frame([(submit.request, 73, LENGTH)])
    if by == "the scheduler":
        patient.backstage.send("scheduler", RequestEnded(submit.request, "finished", 4))
    else:
        patient.backstage.streams["scheduler"].close()
        await patient.backstage.until(lambda: patient.backstage.all_of(RequestEnded, "admission"))
        patient.backstage.received_messages.clear()
    assert (await answer)[0] == 200
    await looked(lambda: not patient.gateway._backend._resuming._finished)
    patient.backstage.send("admission", RequestEnded(submit.request, "error", 0, "admission_lost"))
    (ended,) = await patient.backstage.until(lambda: patient.backstage.all_of(RequestEnded, "admission"))
    assert (ended.request, ended.outcome, ended.output_tokens) == (submit.request, "finished", 4)
    assert patient.backstage.all_of(Cancel) == []


async def test_only_the_last_ends_are_remembered(patient: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "MOST_OVER", 2)
    for _ in range(3):
        patient.backstage.received_messages.clear()
        answer, submit = await begun(patient, 1)
        patient.backstage.frame([(submit.request, 73, LENGTH)])
        patient.backstage.send("scheduler", RequestEnded(submit.request, "finished", 2))
        await answer
    over = patient.gateway._backend._resuming._over
    await looked(lambda: [*over] == [submit.request - 1, submit.request])


async def test_a_request_that_is_lost_with_admission_each_time_it_is_sent_is_given_up(patient: Any) -> None:
    answer = asyncio.create_task(patient.post(CHAT, patient.chat()))
    for number in range(1, MOST_IN_VAIN + 2):
        await patient.backstage.submitted(number)
        lost = patient.backstage.streams.pop("admission")
        lost.close()
        await patient.backstage.until(lambda: "admission" in patient.backstage.streams)
        patient.backstage.send("admission", patient.backstage.capacity)
    status, document, _ = await answer
    assert (status, document["error"]["code"]) == (503, "admission_lost")
    assert len(patient.backstage.all_of(Submit)) == MOST_IN_VAIN + 1


async def test_what_was_sent_twice_is_cancelled_when_its_reader_has_all_of_it(patient: Any) -> None:
    answer, submit = await begun(patient, 1)
    patient.backstage.streams["scheduler"].close()
    await patient.backstage.submitted(2)
    patient.backstage.send("admission", Admitted(submit.request, "all", 1, 1, 2, attempt=1))
    patient.backstage.frame([(submit.request, 71, LENGTH)])
    assert (await answer)[0] == 200
    await patient.backstage.until(lambda: patient.backstage.all_of(Cancel, "scheduler"))
    assert patient.backstage.all_of(Cancel, "admission") == []


async def test_the_record_of_what_goes_on_has_the_time_to_the_token_that_came_first(patient: Any) -> None:
    answer, submit = await begun(patient, 0)
    arrived_ns = patient.gateway._backend._traffic._arrived_ns[submit.request]
    first, later = ({"chunks": {submit.request: b""}, "returned_ns": arrived_ns + ns} for ns in (250_000_000, 10**9))
    patient.backstage.frame([(submit.request, 70, 0)], **first)
    patient.backstage.frame([(submit.request, 71, 0)], **later)
    running = patient.gateway._backend.running[submit.request]
    await looked(lambda: running.num_tokens == 2)
    patient.backstage.streams["scheduler"].close()
    await patient.backstage.submitted(2)
    patient.backstage.send("admission", Admitted(submit.request, "all", 1, 1, 2, attempt=1))
    patient.backstage.frame([(submit.request, 72, LENGTH)])
    measured = Measured("all", None, b"gaps")
    patient.backstage.send("scheduler", RequestEnded(submit.request, "finished", 3, measured=measured))
    assert (await answer)[0] == 200
    await looked(lambda: not patient.gateway._backend._traffic._open)
    assert patient.gateway._backend._traffic._arrived_ns == {}
    patient.gateway._store.close()
    patient.gateway._store = None
    (row,) = read_requests(str(patient.folder), 60)
    assert (row.outcome, row.output_tokens, row.ttft_s, row.gaps) == ("finished", 3, 0.25, b"gaps")


async def test_a_client_that_leaves_while_its_request_is_nobodys_is_forgotten_by_all(patient: Any) -> None:
    answer, submit = await begun(patient, 1)
    await patient.backstage.lose("scheduler")
    answer.cancel()
    (cancel,) = await patient.backstage.until(lambda: patient.backstage.all_of(Cancel, "admission"))
    assert cancel.request == submit.request
    assert patient.gateway._backend.running == {}
    assert patient.gateway._backend._resuming._parked == {}


async def test_new_requests_wait_for_admission_that_was_there_a_moment_ago(patient: Any) -> None:
    patient.backstage.streams["admission"].close()
    await looked(lambda: not patient.gateway._backend._neighbours.has("admission"))
    answer = asyncio.create_task(patient.post(CHAT, patient.chat()))
    await looked(lambda: patient.gateway._backend.running)
    await patient.backstage.until(lambda: "admission" in patient.backstage.streams)
    patient.backstage.send("admission", patient.backstage.capacity)
    (submit,) = await patient.backstage.submitted()
    patient.backstage.speak(submit, [70, 71])
    assert (await answer)[0] == 200


async def test_tokens_say_that_somebody_has_it_when_admission_no_longer_can(patient: Any) -> None:
    answer, submit = await begun(patient, 1)
    patient.backstage.streams["scheduler"].close()
    await patient.backstage.submitted(2)
    patient.backstage.frame([(submit.request, 71, 0)])
    running = patient.gateway._backend.running[submit.request]
    await looked(lambda: running.num_tokens == 2)
    patient.backstage.streams["admission"].close()
    await looked(lambda: not patient.gateway._backend._neighbours.has("admission"))
    running.lost_at_s = 0.0
    patient.gateway._backend._resuming._look()
    patient.backstage.frame([(submit.request, 72, LENGTH)])
    assert (await answer)[0] == 200
