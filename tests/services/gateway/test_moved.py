"""A request that was given to a second admission process because the first was lost, and what becomes of it then."""

import asyncio
from array import array
from typing import Any

import pytest
from msgspec.structs import replace

from policies.commands import FinishReason
from services.clocks import ClockDifference
from services.errors import RequestError
from services.framing import Identity
from services.wire import Admitted, Cancel, Message, Refused, RequestEnded, Submit

CHAT = "/v1/chat/completions"
LENGTH = int(FinishReason.LENGTH)


class Line:
    """The stream of a second admission process, as its gateway sees it."""

    clock = ClockDifference()

    def __init__(self) -> None:
        self.peer = Identity("admission", "1")
        self.sent: list[Message] = []

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def all_of(self, kind: type[Any]) -> list[Any]:
        return [each for each in self.sent if isinstance(each, kind)]


class Moved:
    """A request that the first process has released without saying so, and that the second has by now."""

    def __init__(self, stage: Any) -> None:
        self.stage = stage
        self.backstage = stage.backstage
        self.backend = stage.gateway._backend
        self.second = Line()
        self.answer: asyncio.Task[Any]
        self.submit: Submit

    async def begin(self) -> "Moved":
        self.backstage.capacity = replace(self.backstage.capacity, resumes=True)
        for service in ("admission", "scheduler"):
            self.backstage.send(service, self.backstage.capacity)
        await looked(lambda: sum(filter(None, self.backend._neighbours._resumes.values())) == 2)
        self.answer = asyncio.create_task(self.stage.post(CHAT, self.stage.chat()))
        (self.submit,) = await self.backstage.submitted()
        self.backend.opened(self.second)
        self.say(self.backstage.capacity)
        self.backstage.streams["admission"].close()
        await looked(lambda: self.second.all_of(Submit))
        assert self.running.is_begun is False
        return self

    @property
    def running(self) -> Any:
        return self.backend.running[self.submit.request]

    def say(self, message: Message) -> None:
        """The second process does."""
        self.backend.received(self.second, message)

    async def frame(self, token: int, finish: int = 0) -> None:
        self.backstage.frame([(self.submit.request, token, finish)])
        if not finish:
            await looked(lambda: self.running.choices[0].output[-1:] == array("i", [token]))

    async def first_is_back(self) -> None:
        await self.backstage.until(lambda: "admission" in self.backstage.streams)
        self.backstage.send("admission", self.backstage.capacity)

    async def scheduler_is_replaced(self) -> None:
        self.backstage.streams.pop("scheduler").close()
        await self.backstage.until(lambda: "scheduler" in self.backstage.streams)


async def looked(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  nothing signals it
            await asyncio.sleep(0)


@pytest.fixture
async def moved(stage: Any) -> Moved:
    return await Moved(stage).begin()


async def finished(moved: Moved, num_tokens: int) -> None:
    await moved.frame(79, LENGTH)
    status, document, _ = await moved.answer
    assert (status, document["usage"]["completion_tokens"]) == (200, num_tokens)


async def test_what_the_first_process_released_goes_on_there_when_the_scheduler_is_lost(moved: Moved) -> None:
    moved.say(Admitted(moved.submit.request, "all", 1, 1, 2))
    await moved.frame(70)
    await moved.scheduler_is_replaced()
    await looked(lambda: len(moved.second.all_of(Submit)) == 2)
    # The scheduler had it from the first, so that the second has settled it.
    moved.say(Refused(moved.submit.request, "scheduler_lost", "given up meanwhile"))
    await moved.first_is_back()
    _, again = await moved.backstage.submitted(2)
    assert (again.request, again.resent, array("i", again.outputs[0]).tolist()) == (moved.submit.request, True, [70])
    moved.backstage.send("admission", Admitted(moved.submit.request, "all", 1, 1, 2, attempt=again.attempt))
    await finished(moved, 2)


async def test_a_stream_that_runs_does_not_end_because_another_process_refuses_it(moved: Moved) -> None:
    await moved.frame(70)
    moved.say(Refused(moved.submit.request, "queue_timeout", "it waited"))
    assert moved.running.answer.unheard == {}
    await moved.frame(71)
    await moved.first_is_back()
    await moved.scheduler_is_replaced()
    _, again = await moved.backstage.submitted(2)
    assert (again.attempt, array("i", again.outputs[0]).tolist()) == (1, [70, 71])
    await finished(moved, 3)


async def test_what_nobody_has_begun_is_refused_by_whoever_has_it(moved: Moved) -> None:
    moved.say(Refused(moved.submit.request, "queue_full", "full", 1.0))
    status, document, _ = await moved.answer
    assert (status, document["error"]["code"]) == (429, "queue_full")


@pytest.mark.parametrize("is_back", ["before", "after"])
async def test_whoever_released_it_first_charges_nothing_when_it_goes_on_elsewhere(moved: Moved, is_back: str) -> None:
    request = moved.submit.request
    moved.say(Admitted(request, "all", 1, 1, 2))
    await moved.frame(70)
    if is_back == "before":
        await moved.first_is_back()
    await moved.scheduler_is_replaced()
    await looked(lambda: len(moved.second.all_of(Submit)) == 2)
    if is_back == "before":
        # Nobody knows yet who goes on with it.
        moved.backstage.send("admission", RequestEnded(request, "error", 0, "admission_lost"))
        moved.backstage.send("admission", RequestEnded(request + 9, "error", 0, "admission_lost"))
        await moved.backstage.until(lambda: moved.backstage.all_of(Cancel, "admission"))
        assert moved.backstage.all_of(RequestEnded) == []
    moved.say(Admitted(request, "all", 1, 1, 2, attempt=1))
    if is_back == "after":
        await moved.first_is_back()
        moved.backstage.send("admission", RequestEnded(request, "error", 0, "admission_lost"))
    (told,) = await moved.backstage.until(lambda: moved.backstage.all_of(RequestEnded, "admission"))
    assert (told.request, told.outcome, told.output_tokens, told.attempt) == (request, "refused", 0, 1)
    assert not moved.running.is_parked
    await finished(moved, 2)


async def test_a_process_that_lost_it_on_its_way_has_no_say_in_what_another_has(moved: Moved) -> None:
    await moved.first_is_back()
    moved.backstage.send("admission", RequestEnded(moved.submit.request, "error", 0, "admission_lost"))
    moved.backstage.send("admission", RequestEnded(moved.submit.request + 9, "error", 0, "admission_lost"))
    await moved.backstage.until(lambda: moved.backstage.all_of(Cancel, "admission"))
    assert not moved.running.was_admitted
    moved.say(Admitted(moved.submit.request, "all", 1, 1, 2))
    await finished(moved, 1)


async def test_what_waits_for_a_process_that_does_not_read_goes_there_when_it_reads_again(moved: Moved) -> None:
    first = moved.backend._neighbours._of("admission")
    for stream in [stream for stream in first if stream is not moved.second]:
        moved.backend.closed(stream, "gone")
    moved.backend.stalled(moved.second)
    moved.second.sent.clear()
    moved.backend._resuming._park(moved.running, moved.second, RequestError("admission_lost", "lost"))
    moved.backend._resuming.send_again()
    assert moved.running.is_parked
    moved.backend.resumed(moved.second)
    assert [each.request for each in moved.second.all_of(Submit)] == [moved.submit.request]
    await finished(moved, 1)


async def test_what_still_waits_elsewhere_is_withdrawn_when_its_reader_has_all_of_it(moved: Moved) -> None:
    await finished(moved, 1)
    assert [(each.request, each.reason) for each in moved.second.all_of(Cancel)] == [(moved.submit.request, "finished")]
