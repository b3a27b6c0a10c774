"""How far a replay is from the run that it replays: the four services on the CPU engine against the simulator.

Three tenants of both classes ask at 0.7 of the rate at which a burst is worked off. Each round starts the services
anew and records 60 requests, then 200 others, then 60 more. Both cores' logs must replay to the identical commands. The
model of the executor is fitted to the steps of the first and the last 60 requests; all are replayed under the run's
policy on that model, and the 200 between are compared. So the model has seen none of what it is held against, but it
knows this executor: from one start to the next, and within minutes, the same steps take up to a tenth more or less.

Figures are by the scheduler's stamps: to the first token from the arrival, between tokens from one step's end to the
next's, as its core heard of them. The model draws noise and delays as they were found; what is compared is the median
of several such histories, since one is as much a matter of chance as the run is.
"""

import argparse
import contextlib
import math
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import uvloop

from engine.config import read_config
from engine.demo import CHECKPOINT
from ops.bench.deployed import start
from ops.bench.harness import Paired, Row, at_least, progress, within
from ops.bench.paced_load import asks, send, write_tenants
from policies.admission.core import AdmissionCore
from policies.event_log import Core, read_records, verify
from policies.scheduling.core import SchedulerCore
from policies.simulation.driver import Simulation
from policies.simulation.outcome import Served
from policies.simulation.recording import fitted_device, read_recording
from policies.simulation.report import percentile
from policies.simulation.tokens import Gaps
from services.settings import Deployment, HttpSettings

LOAD = 0.7
"""Of the requests a second that a burst is worked off at."""
NUM_BURST = 60
NUM_AROUND = 60
"""Requests of a run before those that are compared, and as many after."""
SEEDS = tuple(range(15))
"""Of the histories of a replay."""
BURST_SEED, BEFORE_SEED, AFTER_SEED, FIRST_SEED = 1, 3, 5, 100
FIGURES = {"p50_ttft": 0.50, "p99_ttft": 0.99, "p50_tbt": 0.50, "p99_tbt": 0.99}
MUST, STRETCH = 0.10, 0.05


class Round(NamedTuple):
    """One recorded run and its replay; figures in milliseconds, as in `FIGURES`."""

    live: list[float]
    replayed: list[float]
    num_records: int
    num_identical: int
    """Records at the logs' beginnings that replay to the identical commands."""
    fit_error: float
    """Half of the steps are within it."""


def run(arguments: argparse.Namespace) -> list[Row]:
    """Measure; figures are milliseconds."""
    with _recorded() as (port, _):
        rate = LOAD * NUM_BURST / _send(port, NUM_BURST, math.inf, BURST_SEED)
    rounds = []
    for number in range(arguments.rounds):
        with _recorded() as (port, logs):
            _send(port, NUM_AROUND, rate, BEFORE_SEED)
            _send(port, arguments.requests, rate, FIRST_SEED + 2 * number)
            _send(port, NUM_AROUND, rate, AFTER_SEED)
        rounds.append(compare(logs["admission"], logs["scheduler"], num_around=NUM_AROUND))
        progress(number + 1, arguments.rounds)
    rows = []
    for index, name in enumerate(FIGURES):
        lived = [each.live[index] for each in rounds]
        replayed = [each.replayed[index] for each in rounds]
        pairs = [f"{then:.1f}: {now / then - 1:+.1%}" for now, then in zip(replayed, lived, strict=True)]
        row = within(f"{name}_replayed_vs_live", "ms", _paired(replayed, lived), must=MUST, stretch=STRETCH)
        rows.append(msgspec.structs.replace(row, note=f"live ms and error of each round {', '.join(pairs)}"))
    records = [float(each.num_records) for each in rounds]
    identical = [float(each.num_identical) for each in rounds]
    row = at_least("records_replayed_to_identical_commands", "records", _paired(identical, records), must=1, stretch=1)
    error = statistics.median(each.fit_error for each in rounds)
    note = (
        f"{arguments.requests} requests compared, {rate:.1f} a second; the fit is within {error:.1%} of half the steps"
    )
    return [*rows, msgspec.structs.replace(row, note=note)]


def _paired(ours: list[float], reference: list[float]) -> Paired:
    ratios = tuple(a / b for a, b in zip(ours, reference, strict=True))
    return Paired(statistics.median(ours), statistics.median(reference), statistics.median(ratios), ratios)


def compare(admission: bytes, scheduler: bytes, *, num_around: int) -> Round:
    """A run by the logs of both cores, and its replay on a model fitted to so many of its first and last requests.

    Raises:
        RuntimeError: a request has no token: the run is void.
    """
    cores: list[tuple[Core, bytes]] = [(AdmissionCore(), admission), (SchedulerCore(), scheduler)]
    checked = [_identical(core, log) for core, log in cores]
    recording = read_recording(admission, scheduler)
    (policy,) = recording.policies
    compared = slice(num_around, len(recording.served) - num_around)
    from_s, to_s = (recording.served[each].asked.arrived_at_s for each in (compared.start, compared.stop))
    seen = [step for step in recording.steps if step.ended_at_s < from_s or step.begun_at_s > to_s]
    device = fitted_device([recording._replace(steps=seen)], "the demo on this machine's CPU")
    replays = []
    for seed in SEEDS:
        outcome = Simulation(
            policy.document, recording.requests, device.device(seed), steps_in_flight=device.max_steps_in_flight
        ).run()
        replays.append(_figures(outcome.served, outcome.gaps, compared))
    return Round(
        live=_figures(recording.served, recording.gaps, compared),
        replayed=np.median(replays, axis=0).tolist(),
        num_records=sum(records for records, _ in checked),
        num_identical=sum(identical for _, identical in checked),
        fit_error=device.model.error,
    )


@contextlib.contextmanager
def _recorded() -> Iterator[tuple[int, dict[str, bytes]]]:
    """The services' port, and their event logs when they have been stopped."""
    logs: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as name:
        folder = Path(name)
        write_tenants(folder / "data")
        deployment = Deployment(
            data=str(folder / "data"), http=HttpSettings(port=0), record=str(folder / "recorded"), model="demo"
        )
        with contextlib.ExitStack() as stack:
            port, _ = start(deployment, folder, stack)
            yield port, logs
        for core in ("admission", "scheduler"):
            logs[core] = (folder / "recorded" / f"{core}.log").read_bytes()


def _send(port: int, count: int, rate: float, seed: int) -> float:
    vocabulary_size = read_config(CHECKPOINT).vocabulary_size
    return uvloop.run(send(port, asks(count, vocabulary_size=vocabulary_size, seed=seed), rate, seed=seed + 1))


def _identical(core: Core, log: bytes) -> tuple[int, int]:
    """Records of a log, and how many from the beginning a fresh core answers identically."""
    records = list(read_records(log))
    difference = verify(core, records)
    return len(records), len(records) if difference is None else difference.record - 1


def _figures(served: list[Served], gaps: Gaps, compared: slice) -> list[float]:
    """Milliseconds of `FIGURES`, of some of the requests.

    Raises:
        RuntimeError: a request has no token: the run is void.
    """
    waits = [request.first_token_at_s - request.asked.arrived_at_s for request in served if request.first_token_at_s]
    if len(waits) < len(served):
        raise RuntimeError(f"this run is void: {len(served) - len(waits)} of {len(served)} requests got no token")
    samples = {
        "ttft": sorted(waits[compared]),
        "tbt": np.sort(gaps.seconds[(gaps.requests > compared.start) & (gaps.requests <= compared.stop)]).tolist(),
    }
    return [1e3 * percentile(samples[name.split("_")[1]], quantile) for name, quantile in FIGURES.items()]
