"""A deployment at four fifths of what it can do, for minutes: readers leave, policies change, and memory must not grow.

Owns the pace, the edits and how growth is told from noise. Streams are compared and books are asked as in every run.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ops.bench.chaos_faults import Strikes
from ops.bench.chaos_house import Hurt
from ops.bench.chaos_load import Load
from ops.bench.chaos_runs import Outcome, outcome_of
from ops.bench.harness import progress
from services.files import replace

SOAK = "soak"
SHARE = 0.8
"""Of what it can do."""
CAPACITY_PIECES = 2000
"""For which the time is taken, after as many to warm up with."""
LEAVE_SHARE = 0.15
EDIT_S = (2.0, 8.0)
"""Between two edits of the policy, drawn evenly."""
EDITS = (
    ("aging_s: 8 ", "aging_s: 6 "),
    ("max_decodes: 256", "max_decodes: 48"),
    ("eager_kv: 0.9}", "eager_kv: 0.8}"),
    ("version: 1", "version: one"),
)
"""What stands in the policy, and what it becomes; the last is refused, and what was in force stays."""
PARTS = 20
"""Of the progress bar."""
SAMPLE_S = 0.5
WARM_SHARE = 0.3
"""Of the samples, the first: caches fill, and rings of what is remembered."""
NUM_BLOCKS = 12
"""Neighbouring samples say the same: a line is laid through the medians of so many blocks of them."""
STUDENT = 2.23
"""95 % of Student's t with 10 degrees of freedom: twelve points, two parameters."""
TEN_MINUTES_S = 600.0


class Growth(NamedTuple):
    """Of resident memory, of all services together."""

    rss_bytes: float
    """The mean."""
    in_ten_minutes: float
    """The slope of a line through it, as a share of it."""
    uncertainty: float
    """Half the 95 % interval of that."""
    num_samples: int
    by_process: dict[str, tuple[float, float]]
    """Bytes at the beginning and at the end of what counts: medians of the first and of the last block."""

    def words(self) -> str:
        """For a note."""
        each = ", ".join(
            f"{name} {first / 2**20:.1f} -> {last / 2**20:.1f}" for name, (first, last) in self.by_process.items()
        )
        of_all = f"{self.in_ten_minutes:+.2%} ± {self.uncertainty:.2%} of it in ten minutes (95 %)"
        return f"{of_all}, least squares through medians of {NUM_BLOCKS} blocks after {WARM_SHARE:.0%}; MiB: {each}"


def soak(minutes: float, seed: int) -> tuple[Outcome, Growth]:
    """Go on for so long."""
    samples: list[tuple[float, dict[str, int]]] = []

    async def act(house: Hurt, load: Load, strikes: Strikes) -> None:
        rate = await _capacity(load) * SHARE
        load.over, load.leave_share = False, LEAVE_SHARE
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.paced(rate))
            editing = tasks.create_task(_edit(house, np.random.default_rng(seed), strikes))
            while (now_s := time.monotonic() - began_s) < minutes * 60:
                samples.append((now_s, house.rss_bytes()))
                progress(int(now_s / (minutes * 60) * PARTS), PARTS)
                await asyncio.sleep(SAMPLE_S)
            progress(PARTS, PARTS)
            load.over = True
            editing.cancel()

    seen = outcome_of(SOAK, act, Strikes(0), seed)
    return seen, growth(samples)


def growth(samples: Sequence[tuple[float, dict[str, int]]]) -> Growth:
    """Of samples: seconds, and bytes by process."""
    counted = samples[int(len(samples) * WARM_SHARE) :]
    blocks = [[counted[index] for index in part] for part in np.array_split(np.arange(len(counted)), NUM_BLOCKS)]
    times_s = [statistics.median(at_s for at_s, _ in block) for block in blocks]
    totals = [statistics.median(sum(rss.values()) for _, rss in block) for block in blocks]
    line, covariance = np.polyfit(times_s, totals, 1, cov=True)
    mean = statistics.fmean(totals)
    first, last = blocks[0], blocks[-1]
    ends = {
        name: (
            statistics.median(rss.get(name, 0) for _, rss in first),
            statistics.median(rss.get(name, 0) for _, rss in last),
        )
        for name in dict.fromkeys(name for _, rss in counted for name in rss)
    }
    slope, error = float(line[0]), float(np.sqrt(covariance[0][0]))
    scale = TEN_MINUTES_S / mean
    return Growth(mean, slope * scale, STUDENT * error * scale, len(counted), ends)


async def _capacity(load: Load) -> float:
    """Streams a second when there are always as many as usual."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(load.run())
        await load.pieces(CAPACITY_PIECES)
        begun, began_s = load.tally.num["complete"], time.monotonic()
        await load.pieces(CAPACITY_PIECES)
        rate = (load.tally.num["complete"] - begun) / (time.monotonic() - began_s)
        load.over = True
    return rate


async def _edit(house: Hurt, draw: np.random.Generator, strikes: Strikes) -> None:
    """Change something in the policy, and change it back, without end."""
    original = house.policy.read_text()
    while True:
        await asyncio.sleep(draw.uniform(*EDIT_S))
        was, becomes = EDITS[strikes.num // 2 % len(EDITS)]
        edited = original if strikes.num % 2 else original.replace(was, becomes)
        if strikes.num % 2 == 0 and edited == original:
            raise RuntimeError(f"{house.policy} has no `{was}`")
        replace(house.policy, edited.encode())
        strikes.num += 1
