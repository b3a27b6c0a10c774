"""Two tenants on a running deployment: what each gets while the other asks for more than there is.

Counted in requests that end meanwhile, not in seconds.
"""

import asyncio
import random
import statistics
from collections.abc import Iterator

import pytest

from engine.interface import EngineSettings
from ops.bench.fairness import House, Load, end, keep, services

SIZE = (16, 4)
"""Prompt and output tokens of every request."""
NUM_FLOOD, NUM_STEADY = 24, 6
PACED = EngineSettings(kind="paced", paced_step_s=0.02)


@pytest.fixture(params=["vtc", "fcfs"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def house(kind: str) -> Iterator[House]:
    with services(f"{{kind: {kind}, window_tokens: auto, max_requests: 4}}", PACED) as running:
        yield running


def same(_draw: random.Random) -> tuple[int, int]:
    return SIZE


async def ends_beside_one(house: House) -> float:
    """Median of the flood's requests that end while one of the other tenant's is here."""
    flood, steady = Load("flood", same, 1), Load("steady", same, 2)
    flooding = asyncio.ensure_future(keep(house, flood, NUM_FLOOD))
    await flood.reach(NUM_FLOOD)
    counts = []
    for _ in range(3):
        before = flood.num
        reader = await steady.ask(house)
        await reader.ended
        assert reader.ttft_s is not None
        counts.append(flood.num - before)
    await end(flooding)
    return statistics.median(counts)


async def ends_beside_many(house: House) -> float:
    """The flood's requests that end for each of a tenant that offers a quarter as much."""
    flood, steady = Load("flood", same, 3), Load("steady", same, 4)
    tasks = [
        asyncio.ensure_future(keep(house, flood, 4 * NUM_STEADY)),
        asyncio.ensure_future(keep(house, steady, NUM_STEADY)),
    ]
    await steady.reach(5)
    before = flood.num, steady.num
    await steady.reach(steady.num + 16)
    ratio = (flood.num - before[0]) / (steady.num - before[1])
    for task in tasks:
        await end(task)
    return ratio


async def test_a_flood_is_its_own_problem_under_vtc_and_everybodys_under_fcfs(house: House, kind: str) -> None:
    beside_one, beside_many = await ends_beside_one(house), await ends_beside_many(house)
    if kind == "vtc":
        # A place in the window is free after the next end or so; then those beside it go on.
        assert beside_one <= 12
        assert beside_many == pytest.approx(1.0, abs=0.25)
    else:
        assert beside_one >= NUM_FLOOD - 6
        assert beside_many == pytest.approx(4.0, abs=1.0)
