"""What the parts of tokens' latencies come to, against the clock of an independent reader on the same host.

The four services with a paced engine, every token recorded. The reader is a process of its own, at real-time priority
where it may be: else it is told late of what came in time, and its clock tells of the machine. Compared are the
percentiles that each of the two clocks gives. Only streams in which every token is a piece of text are looked at, so
that both speak of the same tokens.
"""

import argparse
import contextlib
import http.client
import json
import statistics
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np

from ops.bench.harness import Paired, Row, UnmeasurableError, at_most, progress
from ops.bench.tracing import House, Load
from services.settings import REPOSITORY

LOAD = Load(0.02, 200)
SEEDS_TRIED, NUM_STREAMS = 40, 4
SHARE, LEAST_S = 0.05, 100e-6
"""How far the two may be apart: by the larger of these."""
PERCENTS = (50, 99)


class Seen(NamedTuple):
    """Latencies of one round by both clocks, seconds."""

    parts_s: list[float]
    reader_s: list[float]
    first_parts_s: list[float]
    first_reader_s: list[float]


class Readers:
    """The process of the readers."""

    def __init__(self, house: House, stack: contextlib.ExitStack) -> None:
        self._house = house
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ops.bench.clocked_readers"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(self._process.wait)
        stack.callback(self._process.stdin.close)  # type: ignore[union-attr]  # it was asked for
        self.realtime = False

    def read(self, seeds: list[int]) -> list[dict[str, Any]]:
        """A stream for each seed, read to its end."""
        order = {"port": self._house.port, "key": self._house.key, "seeds": seeds, "tokens": LOAD.tokens}
        assert self._process.stdin is not None  # noqa: S101  it was asked for
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        said = json.loads(self._process.stdout.readline())
        self.realtime = said["realtime"]
        streams: list[dict[str, Any]] = said["streams"]
        return streams


def run(arguments: argparse.Namespace) -> list[Row]:
    """Measure."""
    with contextlib.ExitStack() as stack:
        house = House(LOAD, tokens=True, stack=stack)
        readers = Readers(house, stack)
        tried = list(range(SEEDS_TRIED))
        whole = [seed for seed, stream in zip(tried, readers.read(tried), strict=True) if _is_whole(stream)]
        if len(whole) < NUM_STREAMS:
            raise UnmeasurableError(f"only {len(whole)} of {SEEDS_TRIED} streams have a piece of text for every token")
        seen = []
        for index in range(arguments.rounds):
            seen.append(_round(house, readers, whole[:NUM_STREAMS]))
            progress(index + 1, arguments.rounds)
    how = "the reader ran at real-time priority" if readers.realtime else "the reader had no real-time priority"
    rows = []
    for name, pairs in (
        ("between tokens", [(one.parts_s, one.reader_s) for one in seen]),
        ("to the first token", [(one.first_parts_s, one.first_reader_s) for one in seen]),
    ):
        rows += [_row(f"P{percent} {name}", pairs, percent, how) for percent in PERCENTS]
    return rows


def _is_whole(stream: dict[str, Any]) -> bool:
    return len(stream["times_s"]) == LOAD.tokens


def _round(house: House, readers: Readers, seeds: list[int]) -> Seen:
    seen = Seen([], [], [], [])
    for stream in readers.read(seeds):
        told = _story(house, stream["id"])
        (choice,) = told["choices"]
        seen.parts_s.extend(sum(parts) for parts in choice["token_parts_s"])
        seen.reader_s.extend(np.diff(stream["times_s"]).tolist())
        seen.first_parts_s.append(sum(told["first"].values()))
        seen.first_reader_s.append(stream["times_s"][0] - stream["begun_s"])
    return seen


def _story(house: House, name: str) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", house.port, timeout=60)
    with contextlib.closing(connection):
        headers = {"authorization": f"Bearer {house.key}"}
        connection.request("GET", f"/v1/fairlead/requests/{name}", headers=headers)
        story: dict[str, Any] = json.load(connection.getresponse())
    return story


def _row(name: str, pairs: list[tuple[list[float], list[float]]], percent: int, how: str) -> Row:
    """The ratio is the difference over what is allowed: 5 % of what the reader saw, or 100 us."""
    figures = [(float(np.percentile(a, percent)), float(np.percentile(b, percent))) for a, b in pairs]
    ratios = tuple(abs(a - b) / max(SHARE * b, LEAST_S) for a, b in figures)
    ours, reference = (statistics.median(column) * 1e3 for column in zip(*figures, strict=True))
    row = at_most(name, "ms", Paired(ours, reference, statistics.median(ratios), ratios), must=1.0, stretch=0.2)
    note = f"{abs(ours / reference - 1):.2%} apart; the ratio is of the difference to 5 % or 100 us; {how}"
    return Row(**{**{field: getattr(row, field) for field in row.__struct_fields__}, "note": note})
