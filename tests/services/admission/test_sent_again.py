"""Requests that are sent again wait until it is known what the scheduler has, and gateways are told what nobody has."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from engine.interface import Sampling
from policies.events import CancelRequested
from services.admission import sent_again
from services.admission.sent_again import SentAgain
from services.clocks import ClockDifference
from services.wire import Message, RequestEnded, Submit

GATEWAY = 7
REQUEST = GATEWAY << 32


class Stream:
    """A gateway's."""

    clock = ClockDifference()

    def __init__(self) -> None:
        self.sent: list[Message] = []

    def send(self, message: Message) -> None:
        self.sent.append(message)


class Desk:
    """What is around it: `epoch` is that of a scheduler that is agreed with, 0: none is."""

    def __init__(self) -> None:
        self.epoch = 0
        self.handled: list[Any] = []
        self.arrived: list[Submit] = []
        self.gateways: dict[int, Stream] = {GATEWAY: Stream()}
        self.ends = SimpleNamespace(stranded={})
        self.ledger = SimpleNamespace(in_flight={REQUEST: SimpleNamespace(attempt=2)})
        self.again = SentAgain(self, self.handled.append, self.gateways, self.arrived.append, self)  # type: ignore[arg-type]

    def agrees_on(self, epoch: int) -> bool:
        return self.epoch != 0 and epoch in (0, self.epoch)

    def submit(self, **options: Any) -> Submit:
        made = Submit(REQUEST, "acme", "paid", b"\0" * 8, 10, [Sampling()], **options)
        self.again.came(made)
        return made


@pytest.fixture
async def desk() -> Desk:
    return Desk()


async def test_what_comes_for_the_first_time_waits_for_nobody(desk: Desk) -> None:
    assert desk.arrived == [desk.submit()]


async def test_what_is_sent_again_waits_for_the_scheduler_that_it_is_for(desk: Desk) -> None:
    desk.submit(resent=True, scheduler_epoch=5)
    desk.epoch = 4
    desk.again.agreed()
    assert desk.arrived == []
    newer = desk.submit(resent=True, scheduler_epoch=6, attempt=2)
    desk.epoch = 6
    desk.again.agreed()
    desk.again.agreed()
    assert desk.arrived == [newer]


async def test_whoever_is_cancelled_or_leaves_meanwhile_does_not_come(desk: Desk) -> None:
    desk.submit(resent=True)
    desk.again.cancelled(REQUEST)
    desk.submit(resent=True)
    desk.again.closed(GATEWAY, ())
    desk.epoch = 1
    desk.again.agreed()
    assert desk.arrived == []


async def test_a_gateway_is_told_what_nobody_computes_and_again_when_it_is_back(desk: Desk) -> None:
    desk.ends.stranded[REQUEST] = 1.0
    desk.again.stranded(REQUEST, 2)
    desk.again.opened(GATEWAY)
    told = desk.gateways[GATEWAY].sent
    assert [(each.request, each.attempt) for each in told if isinstance(each, RequestEnded)] == [(REQUEST, 2)] * 2


async def test_a_gateway_that_stays_away_has_what_nobody_computes_given_up(desk: Desk, monkeypatch) -> None:
    monkeypatch.setattr(sent_again, "ABSENT_S", 0.0)
    desk.ends.stranded[REQUEST] = 1.0
    del desk.gateways[GATEWAY]
    desk.again.closed(GATEWAY, ())
    async with asyncio.timeout(10):
        while not desk.handled:  # noqa: ASYNC110  a timer of no time
            await asyncio.sleep(0)
    assert desk.handled == [CancelRequested(REQUEST, "gateway_lost")]


async def test_one_that_is_back_in_time_keeps_it(desk: Desk) -> None:
    desk.ends.stranded[REQUEST] = 1.0
    stream = desk.gateways.pop(GATEWAY)
    desk.again.stranded(REQUEST, 2)
    desk.gateways[GATEWAY] = stream
    desk.again.opened(GATEWAY)
    assert desk.again._absent == {}
    assert desk.handled == []


async def test_how_long_a_client_has_waited_counts_where_it_was_sent_before(desk: Desk) -> None:
    assert desk.again.waited_s(desk.submit(received_ns=1)) == 0.0
    assert desk.again.waited_s(desk.submit(received_ns=1, resent=True)) > 0.0


async def test_what_waits_leaves_with_its_gateway_unless_this_process_leaves_itself(desk: Desk) -> None:
    desk.again.closed(GATEWAY, (REQUEST, REQUEST + 1, 5))
    assert [each.request for each in desk.handled] == [REQUEST, REQUEST + 1]
    desk.again.leave()
    desk.again.closed(GATEWAY, (REQUEST,))
    assert len(desk.handled) == 2


async def test_a_process_that_leaves_waits_for_no_gateway(desk: Desk) -> None:
    desk.again.leave()
    del desk.gateways[GATEWAY]
    desk.again.stranded(REQUEST, 2)
    assert desk.again._absent == {}
