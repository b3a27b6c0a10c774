"""Mutated frames against each end of the internal streams: does anything crash, hang, leak, or believe them?

Valid messages of every kind, made up or honest, are damaged at bytes and at fields, given wrong lengths, nested, cut
and blown up, and arrive in pieces, before the handshake and after it, at each service as it is (a stream without a
kernel). Between them neighbours say what is right, so that there is something to damage. A frame may be ignored with a
warning or end its own connection; it may not end another, nor raise in the service, nor leave an invariant broken. The
same seed makes the same frames.

    fairlead bench fuzz --frames 1000000 --listener scheduler
"""

import argparse
import asyncio
import logging
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
import uvloop

from ops.bench.fuzz_frames import KINDS, damaged, encoded, framed, message
from ops.bench.fuzz_neighbours import Neighbour, Place
from ops.bench.fuzz_places import PLACES
from ops.bench.harness import Row, UnmeasurableError, progress
from services.framing import encode_frame

FRAMES = 20_000
MOST_HONEST = 4
"""Honest messages before each mutated frame."""
TURN = 200
"""Frames between looks at timers and invariants."""
MUST_RSS = 1.2
"""Against what is resident after the first tenth."""
MOST_DESCRIPTORS = 16
"""More than after the first tenth: a store opens its files when it first needs them; a leak would be thousands."""
SLOWEST_S = 5.0
"""A frame that takes longer hangs its service for everybody else; less says nothing on a machine that others use."""


class Strike(NamedTuple):
    """A frame that did what no frame may."""

    number: int
    frame: bytes
    error: str


class Outcome(NamedTuple):
    """Of one place."""

    name: str
    num_frames: int
    num_closed: int
    """Connections that the service ended."""
    strikes: list[Strike]
    slowest_s: float
    rss_ratio: float
    num_more_descriptors: int


def run(arguments: argparse.Namespace) -> list[Row]:
    """Each place asked for."""
    names = arguments.listener or list(PLACES)
    if unknown := [name for name in names if name not in PLACES]:
        raise UnmeasurableError(f"--listener {unknown[0]}: there is no such place; there are {', '.join(PLACES)}")
    rows = []
    for name in names:
        found = outcome(name, arguments.frames or FRAMES, arguments.seed)
        for strike in found.strikes:
            print(f"{name}: frame {strike.number} of seed {arguments.seed}: {strike.error}", file=sys.stderr)
            print(f"    {strike.frame[:400].hex()}", file=sys.stderr)
        rows += _rows(found)
    return rows


def outcome(name: str, num_frames: int, seed: int, *, most_strikes: int = 1) -> Outcome:
    """Strike a place so often, or until it has failed so often: what comes after a failure means little."""
    before = logging.root.level
    logging.disable(logging.CRITICAL)  # a million warnings are its right answer
    try:
        with tempfile.TemporaryDirectory(prefix="fairlead-fuzz-") as folder:
            return uvloop.run(_strike(PLACES[name](), Path(folder), num_frames, seed, most_strikes))
    finally:
        logging.disable(logging.NOTSET)
        logging.root.setLevel(before)


async def _strike(place: Place, folder: Path, num_frames: int, seed: int, most_strikes: int) -> Outcome:
    rng = random.Random(seed)
    strikes: list[Strike] = []
    current = [0, b""]

    def crashed(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        strikes.append(Strike(int(current[0]), bytes(current[1]), f"in a callback: {context.get('exception')!r}"))

    asyncio.get_running_loop().set_exception_handler(crashed)
    await place.open(folder)
    num_closed, slowest_s = 0, 0.0
    rss, descriptors = 0, 0
    for number in range(num_frames):
        if number == num_frames // 10:
            rss, descriptors = _rss(), _descriptors()
        neighbour = rng.choice(place.neighbours)
        frame = _frame(place, neighbour, rng)
        current[:] = [number, frame]
        begun_s = time.perf_counter()
        try:
            for _ in range(rng.randrange(MOST_HONEST + 1)):
                _speak(place, rng.choice(place.neighbours), rng)
            num_closed += _say(place, neighbour, rng, frame)
            if number % TURN == 0:
                place.check()
        except Exception as error:  # noqa: BLE001  whatever it is, a frame must not raise it
            strikes.append(Strike(number, frame, _where(error)))
            neighbour.close()
        slowest_s = max(slowest_s, time.perf_counter() - begun_s)
        if len(strikes) >= most_strikes:
            break
        if number % TURN == 0:
            await asyncio.sleep(0)
            progress(number + 1, num_frames)
    progress(num_frames, num_frames)
    found = Outcome(
        place.name,
        number + 1,
        num_closed,
        strikes,
        slowest_s,
        _rss() / rss if rss else 1.0,
        _descriptors() - descriptors if descriptors else 0,
    )
    await place.close()
    return found


def _frame(place: Place, neighbour: Neighbour, rng: random.Random) -> bytes:
    """Something honest and damaged, or made up and at times not even damaged."""
    if rng.random() < 0.5:
        return framed(rng, damaged(rng, encoded(place.honest(neighbour, rng))))
    made = encoded(message(rng, place.pool, rng.choice(KINDS)))
    return framed(rng, made if rng.random() < 0.3 else damaged(rng, made))


def _speak(place: Place, neighbour: Neighbour, rng: random.Random) -> None:
    """Something honest."""
    if not neighbour.is_open:
        place.join(neighbour)
    neighbour.say(encode_frame(place.honest(neighbour, rng)))
    for each in place.neighbours:
        if each.wire.written or each.wire.is_over:
            each.listen()


def _say(place: Place, neighbour: Neighbour, rng: random.Random, frame: bytes) -> bool:
    """Say it, at times before the handshake and at times in pieces; True: the connection is over."""
    if rng.random() < 0.02:
        neighbour.connect()
        neighbour.say(frame)
        neighbour.close()
        neighbour.connect()
        neighbour.shake()
    if not neighbour.is_open or rng.random() < 0.001:
        place.join(neighbour)
    others = [each for each in place.neighbours if each is not neighbour and each.is_open]
    cut = rng.randrange(len(frame)) if rng.random() < 0.1 else 0
    for piece in (frame[:cut], frame[cut:]):
        if piece and neighbour.is_open:
            neighbour.say(piece)
    for each in place.neighbours:
        if each.wire.written or each.wire.is_over:
            each.listen()
    if gone := [each.identity for each in others if not each.is_open]:
        raise AssertionError(f"the connection of {gone[0].service} {gone[0].instance} ended, too")
    return not neighbour.is_open


def _where(error: Exception) -> str:
    """The error and the innermost places it came through."""
    places = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return f"{error!r} at {' > '.join(places[-6:])}"


def _rss() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _rows(found: Outcome) -> list[Row]:
    crashes = Row(
        metric=f"fuzz_{found.name}_failures",
        unit="frames that did what none may",
        ours=len(found.strikes),
        reference=found.num_frames,
        ratio=len(found.strikes) / found.num_frames,
        must=0,
        stretch=0,
        ok=not found.strikes,
        rounds=1,
        spread=0.0,
        load_average=os.getloadavg()[0],
        note=f"{found.num_frames} frames, {found.num_closed} connections closed by the service",
    )
    memory = msgspec.structs.replace(
        crashes,
        metric=f"fuzz_{found.name}_resident",
        unit="of the first tenth's",
        ours=found.rss_ratio,
        reference=1,
        ratio=found.rss_ratio,
        must=MUST_RSS,
        stretch=1.05,
        ok=found.rss_ratio <= MUST_RSS and found.num_more_descriptors <= MOST_DESCRIPTORS,
        note=f"{found.num_more_descriptors} more descriptors",
    )
    slowest = msgspec.structs.replace(
        crashes,
        metric=f"fuzz_{found.name}_slowest_frame",
        unit="s",
        ours=found.slowest_s,
        reference=SLOWEST_S,
        ratio=found.slowest_s / SLOWEST_S,
        must=1,
        stretch=0.02,
        ok=found.slowest_s <= SLOWEST_S,
        note="",
    )
    return [crashes, memory, slowest]
