"""One run of a fault: a deployment, the right answers, the load, and what is left when it is over.

Owns the order of these and whether usage is what clients were told.
"""

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import uvloop

from engine.interface import EngineSettings
from ops.bench.chaos_asks import Ask, Said, asks
from ops.bench.chaos_faults import Fault, Strikes
from ops.bench.chaos_house import Books, Hurt
from ops.bench.chaos_load import NUM_STREAMS, Load, Tally

NUM_ASKS = 65
"""Five times all kinds."""
NUM_ALONE = 4
"""Streams at a time in the second undisturbed run: the company must not matter."""
ENGINE = EngineSettings(threads=1, kv_pool_tokens=16384)
"""The clients and the other services need a core; and a pool of which every page is soon used, so that memory grows no
more because of it."""
SILENCE_S, PATIENT_S = 5.0, 3600.0
"""After which a process that gives no sign of life is killed, unless it is to be woken again."""


class Outcome(NamedTuple):
    """Of one fault's run."""

    fault: str
    tally: Tally
    strikes: Strikes
    usage: str
    """How usage is not what clients were told; empty: it is."""
    left: dict[str, int]
    trouble: list[str]
    took_s: float


Act = Callable[[Hurt, Load, Strikes], Awaitable[None]]
"""Reads streams until it is over, and does what is to be done to the services meanwhile."""


def outcome(fault: Fault, num_strikes: int, seed: int, *, num_asks: int = NUM_ASKS, check: bool = True) -> Outcome:
    """Strike so many times. The same seed draws the same requests, and the same moments as far as machines can."""

    async def act(house: Hurt, load: Load, strikes: Strikes) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.run())
            try:
                await fault.strike(house, load, np.random.default_rng(seed), strikes)
                await load.pieces(NUM_STREAMS * 4)
            except TimeoutError as error:
                load.tally.hung(f"after strike {strikes.num}: {error}")
            finally:
                load.over = True

    silence_s = PATIENT_S if fault.patient else SILENCE_S
    return outcome_of(fault.name, act, Strikes(num_strikes), seed, num_asks=num_asks, check=check, silence_s=silence_s)


def outcome_of(
    name: str,
    act: Act,
    strikes: Strikes,
    seed: int,
    *,
    num_asks: int = NUM_ASKS,
    check: bool = True,
    silence_s: float = SILENCE_S,
) -> Outcome:
    """Act on services of its own."""
    print(f"{name}, seed {seed}", file=sys.stderr)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fairlead-chaos-")))
        house = Hurt(folder, stack, engine=ENGINE, check=check, silence_s=silence_s)
        return uvloop.run(_story(house, name, act, strikes, seed=seed, num_asks=num_asks))


async def references(house: Hurt, catalogue: Sequence[Ask], seed: int) -> tuple[list[Said], list[Tally]]:
    """The right answer of each request, undisturbed, twice: in much company and in little.

    Raises:
        RuntimeError: the two differ, so that no fault can be blamed for anything.
    """
    crowd = Load(house.address, catalogue, seed=seed)
    right = await crowd.once()
    few = Load(house.address, catalogue, right=right, num_streams=NUM_ALONE, seed=seed)
    await few.once()
    return right, [crowd.tally, few.tally]


async def _story(house: Hurt, name: str, act: Act, strikes: Strikes, *, seed: int, num_asks: int) -> Outcome:
    catalogue = asks(num_asks, seed)
    right, tallies = await references(house, catalogue, seed)
    load = Load(house.address, catalogue, right=right, seed=seed)
    began_s = time.monotonic()
    await act(house, load, strikes)
    took_s = time.monotonic() - began_s
    left = await house.left_behind()
    usage = _usage_differs(house.books(), [*tallies, load.tally])
    return Outcome(name, load.tally, strikes, usage, left, house.trouble(), took_s)


def _usage_differs(books: Books, tallies: Sequence[Tally]) -> str:
    """In words; empty: usage is what clients were told. What was not read to its end may be charged up to there."""
    told = Books(
        sum(tally.num["complete"] for tally in tallies),
        *(sum(getattr(tally, name) for tally in tallies) for name in Books._fields[1:]),
    )
    part = Books(
        sum(tally.num["cut"] + tally.num["left"] for tally in tallies),
        sum(tally.part_prompt_tokens for tally in tallies),
        sum(tally.part_prompt_tokens for tally in tallies),
        sum(tally.part_output_tokens for tally in tallies),
    )
    if all(low <= has <= low + more for has, low, more in zip(books, told, part, strict=True)):
        return ""
    return f"usage has {books._asdict()}, clients were told {told._asdict()}, and of others at most {part._asdict()}"
