"""Admission and the scheduler lose one another, or admission starts again, while the rest goes on."""

import asyncio
from pathlib import Path

import pytest
from joined_services import SECRET, House, no_stop

from policies.admission.core import AdmissionCore
from policies.event_log import read_records, verify
from services.admission.service import AdmissionService
from services.transport import Identity, Link
from services.usage_rows import FILE, read_usage
from services.wire import Admitted, InvalidRequest, PolicyNow, RequestEnded, TokenFrame


@pytest.fixture
async def house(tmp_path: Path, recorder):
    made = await House(tmp_path, recorder()).start()
    yield made
    await made.stop()


async def settled(house: House) -> None:
    async with asyncio.timeout(10):
        while house.admission._core.ledger.in_flight:  # noqa: ASYNC110  nobody is told of it
            await asyncio.sleep(0)


async def usage(house: House) -> dict[str, int]:
    await house.stop()
    house.stop = no_stop  # type: ignore[method-assign]
    (row,) = read_usage(Path(house.deployment.data) / FILE, "acme", 2)
    return row.counts


async def test_a_stream_that_breaks_costs_no_token_and_counts_none_twice(house: House) -> None:
    ended, request = house.submit(5, 7, shares_prefix=False), house.submit(20, 300, shares_prefix=False)
    await house.ended(ended)
    await house.gateway.message(TokenFrame, 20)
    for count in (60, 100):
        house.admission._links[-1].stream.close()
        await house.gateway.message(TokenFrame, count)
    await house.ended(request)
    await settled(house)
    assert await usage(house) == {"requests": 2, "prompt_tokens": 25, "output_tokens": 307}
    log = (Path(house.deployment.record) / "admission.log").read_bytes()
    assert verify(AdmissionCore(), list(read_records(log))) is None


async def test_admission_that_starts_again_goes_on_and_its_log_replays(house: House) -> None:
    ended, request = house.submit(5, 7, shares_prefix=False), house.submit(20, 300, shares_prefix=False)
    await house.ended(ended)
    await house.gateway.message(TokenFrame, 20)
    await house.admission.stop()
    house.admission = AdmissionService(house.deployment)
    await house.admission.start()
    await house.gateway.message(PolicyNow, 2)
    await asyncio.gather(house.ended(house.submit(5, 7, shares_prefix=False)), house.ended(request))
    await settled(house)
    assert await usage(house) == {"requests": 3, "prompt_tokens": 30, "output_tokens": 314}
    log = (Path(house.deployment.record) / "admission.log").read_bytes()
    assert verify(AdmissionCore(), list(read_records(log))) is None


async def test_a_request_that_is_lost_on_its_way_is_answered_and_costs_nothing(house: House) -> None:
    house.admission._scheduler.stream.send = lambda message: None
    request = house.submit(20, 300, shares_prefix=False)
    async with asyncio.timeout(10):
        while request not in house.admission._core.ledger.in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0)
    house.admission._links[-1].stream.close()
    ended = await house.gateway.message(RequestEnded)
    assert (ended.request, ended.outcome, ended.code) == (request, "error", "admission_lost")
    await house.ended(house.submit(5, 7, shares_prefix=False))
    await settled(house)
    assert await usage(house) == {"requests": 1, "prompt_tokens": 5, "output_tokens": 7}


async def test_what_a_lost_scheduler_found_in_the_cache_is_heard_of_the_gateway(house: House, recorder) -> None:
    house.admission._links[-1].stream._receiver = recorder()
    request = house.submit(20, 300, shares_prefix=False)
    await house.gateway.message(Admitted)
    house.number = 0  # the same again
    house.submit(20, 300, shares_prefix=False, resent=True, attempt=1, cached_tokens=16)
    await house.gateway.message(Admitted, 2)
    house.links["admission"].stream.send(RequestEnded(request, "finished", 250, attempt=1))
    await settled(house)
    counted = await usage(house)
    assert counted == {"requests": 1, "prompt_tokens": 20, "cached_tokens": 16, "output_tokens": 250}


async def test_a_gateway_says_how_its_own_requests_have_ended_and_no_others(house: House, recorder) -> None:
    other = recorder()
    link = Link(house.deployment.streams.admission, Identity("gateway", "78"), SECRET, other)
    link.start()
    await other.message(PolicyNow)
    # Nothing is heard of the scheduler: only gateways speak of ends.
    house.admission._links[-1].stream._receiver = other
    request = house.submit(20, 300, shares_prefix=False)
    await house.gateway.message(Admitted)
    link.stream.send(RequestEnded(request, "finished", 0))
    link.stream.send(InvalidRequest(78 << 32, "globex"))
    await other.message(Admitted)
    assert request in house.admission._core.ledger.in_flight
    house.links["admission"].stream.send(RequestEnded(request, "finished", 250, cached_tokens=16))
    await settled(house)
    await link.close()
    counted = await usage(house)
    assert counted == {"requests": 1, "prompt_tokens": 20, "cached_tokens": 16, "output_tokens": 250}
