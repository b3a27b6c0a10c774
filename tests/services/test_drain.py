"""SIGTERM for the services behind the gateway while a request runs, in any order."""

import asyncio
from itertools import permutations
from pathlib import Path

import pytest
from joined_services import House, expected
from msgspec.structs import replace


@pytest.mark.parametrize("order", list(permutations(("admission", "scheduler"))))
async def test_a_service_that_is_told_to_stop_ends_what_is_in_hand_first(tmp_path: Path, recorder, order) -> None:
    house = await House(tmp_path, recorder()).start()
    try:
        services = {"admission": house.admission, "scheduler": house.scheduler}
        running = house.submit(20, 30)
        await house.gateway.until(lambda: house.frames)
        drained = [asyncio.create_task(services[name].drain()) for name in order]
        # Whoever sends this has nobody else: it is served, too.
        late = house.submit(20, 5)
        for request in (running, late):
            assert (await house.ended(request)).outcome == "finished"
        await asyncio.gather(*drained)
        assert house.tokens() == {running: expected(running, 20, 30), late: expected(late, 20, 5)}
    finally:
        await house.stop()


async def test_what_takes_longer_than_readers_have_is_left_to_a_successor(tmp_path: Path, recorder) -> None:
    house = House(tmp_path, recorder())
    at_once = replace(house.deployment, http=replace(house.deployment.http, drain_s=0.0))
    house.scheduler._deployment = house.admission._deployment = at_once
    await house.start()
    try:
        running = house.submit(20, 900)
        await house.gateway.until(lambda: house.frames)
        await asyncio.gather(house.scheduler.drain(), house.admission.drain())
        assert running in house.scheduler._core.requests
    finally:
        await house.stop()
