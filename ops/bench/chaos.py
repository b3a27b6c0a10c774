"""Faults under load: are streams whole, exact and charged once when processes die, stall or are replaced?

A deployment as `fairlead up` starts it, with the demo model on the CPU in float32, serves 32 streams at any time:
greedy, seeded, with grammars and with penalties, and a few with several choices, stop strings, log-probabilities or
no streaming. First undisturbed, which gives the right answers; then while a fault strikes again and again at moments
drawn from `--seed`. Every stream whose gateway was not killed must end with exactly the right answer, usage must be the
sum of what clients were told, and nothing may stay held when they have left.

    fairlead bench chaos                                  one of each fault, short
    fairlead bench chaos --fault kill-executor --kills 30
"""

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import uvloop

from engine.interface import EngineSettings
from ops.bench.chaos_asks import Ask, Said, asks
from ops.bench.chaos_faults import FAULTS, Fault, Strikes
from ops.bench.chaos_house import Books, Hurt
from ops.bench.chaos_load import NUM_STREAMS, Load, Tally
from ops.bench.harness import Row, UnmeasurableError, progress

NUM_ASKS = 65
"""Five times all kinds."""
NUM_ALONE = 4
"""Streams at a time in the second undisturbed run: the company must not matter."""
SHORT_KILLS = 3
THREADS = 1
"""Of the engine: the clients and the other services need a core."""


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


def run(arguments: argparse.Namespace) -> list[Row]:
    """Each fault asked for, on services of its own."""
    names = arguments.fault or list(FAULTS)
    if unknown := [name for name in names if name not in FAULTS]:
        raise UnmeasurableError(f"--fault {unknown[0]}: there is no such fault; there are {', '.join(FAULTS)}")
    rows: list[Row] = []
    for number, name in enumerate(names):
        rows += _rows(outcome(FAULTS[name], arguments.kills or SHORT_KILLS, arguments.seed))
        progress(number + 1, len(names))
    return rows


def outcome(fault: Fault, num_strikes: int, seed: int, *, num_asks: int = NUM_ASKS, check: bool = True) -> Outcome:
    """Strike so many times. The same seed draws the same requests, and the same moments as far as machines can."""
    print(f"{fault.name}: {num_strikes} times, seed {seed}", file=sys.stderr)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fairlead-chaos-")))
        house = Hurt(folder, stack, engine=EngineSettings(threads=THREADS), check=check)
        return uvloop.run(_story(house, fault, num_strikes, seed, num_asks))


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


async def _story(house: Hurt, fault: Fault, num_strikes: int, seed: int, num_asks: int) -> Outcome:
    catalogue = asks(num_asks, seed)
    right, tallies = await references(house, catalogue, seed)
    load = Load(house.address, catalogue, right=right, seed=seed)
    began_s = time.monotonic()
    strikes = Strikes()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(load.run())
        try:
            await fault.strike(house, load, np.random.default_rng(seed), num_strikes, strikes)
            await load.pieces(NUM_STREAMS * 4)
        finally:
            load.over = True
    took_s = time.monotonic() - began_s
    left = await house.left_behind()
    usage = _usage_differs(house.books(), [*tallies, load.tally])
    return Outcome(fault.name, load.tally, strikes, usage, left, house.trouble(), took_s)


def _usage_differs(books: Books, tallies: Sequence[Tally]) -> str:
    """In words; empty: usage is what clients were told. What a gateway took with it may be charged up to its end."""
    told = Books(
        sum(tally.num["complete"] for tally in tallies),
        *(sum(getattr(tally, name) for tally in tallies) for name in Books._fields[1:]),
    )
    cut = Books(
        sum(tally.num["cut"] for tally in tallies),
        sum(tally.cut_prompt_tokens for tally in tallies),
        sum(tally.cut_prompt_tokens for tally in tallies),
        sum(tally.cut_output_tokens for tally in tallies),
    )
    if all(low <= has <= low + more for has, low, more in zip(books, told, cut, strict=True)):
        return ""
    return f"usage has {books._asdict()}, clients were told {told._asdict()}, and at most {cut._asdict()} were cut"


def _rows(seen: Outcome) -> list[Row]:
    tally = seen.tally
    num = tally.num["complete"] + tally.num["cut"]
    notes = [f"{seen.strikes.words()}; {tally.words()}; {seen.took_s:.0f} s", *tally.problems]
    bad = tally.num["failed"] + tally.num["wrong"]
    held = sum(seen.left.values())
    return [
        _none(f"{seen.fault}: lost or changed streams", "streams", bad, num, "; ".join(notes)),
        _none(f"{seen.fault}: refused", "requests", tally.num["refused"], num),
        _none(f"{seen.fault}: usage differs", "runs", int(bool(seen.usage)), 1, seen.usage),
        _none(f"{seen.fault}: held in the end", "things", held, num, f"{seen.left}" if held else ""),
        _none(f"{seen.fault}: errors in logs", "lines", len(seen.trouble), num, "; ".join(seen.trouble[:5])),
    ]


def _none(metric: str, unit: str, count: int, reference: int, note: str = "") -> Row:
    """A row of what must not be."""
    return Row(
        metric=metric,
        unit=unit,
        ours=count,
        reference=reference,
        ratio=count / max(1, reference),
        must=0,
        stretch=0,
        ok=count == 0,
        rounds=1,
        spread=0.0,
        load_average=os.getloadavg()[0],
        note=note,
    )
