"""How far a replay is from the run that it replays: the four services on the CPU engine against the simulator.

Three tenants of both classes ask at 0.7 of the rate that the services can keep up with. The model of the executor is
fitted to a run of its own, with other requests; each round then starts the services anew, records a run, checks that
both cores' logs replay to the identical commands, and replays the run's requests under its policy on that model.

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
from policies.simulation.fitted_model import FittedDevice
from policies.simulation.fitting import fit
from policies.simulation.outcome import Served
from policies.simulation.recording import Recording, read_recording
from policies.simulation.report import percentile
from policies.simulation.tokens import Gaps
from services.settings import Deployment, HttpSettings

LOAD = 0.7
"""Of the requests a second that a burst is worked off at."""
NUM_BURST = 60
NUM_FITTED = 150
"""Paced requests of the run that the model is fitted to, after the burst."""
SEEDS = tuple(range(9))
BURST_SEED, FIT_SEED, FIRST_ROUND_SEED = 1, 2, 100
FIGURES = {"p50_ttft": 0.50, "p99_ttft": 0.99, "p50_tbt": 0.50, "p99_tbt": 0.99}
MUST, STRETCH = 0.10, 0.05


class Fitting(NamedTuple):
    """What the run before the rounds came to."""

    rate: float
    """Requests a second of the rounds."""
    device: FittedDevice


class Round(NamedTuple):
    """One recorded run and its replay; figures in milliseconds, as in `FIGURES`."""

    live: list[float]
    replayed: list[float]
    num_records: int
    num_identical: int
    """Records at the logs' beginnings that replay to the identical commands."""


def run(arguments: argparse.Namespace) -> list[Row]:
    """Measure; figures are milliseconds."""
    fitting = _fitting_run()
    rounds = []
    for number in range(arguments.rounds):
        rounds.append(_round(fitting, arguments.requests, FIRST_ROUND_SEED + 2 * number))
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
    model = fitting.device.model
    note = (
        f"{fitting.rate:.1f} requests/s; the model is fitted to {model.num_steps} steps of another run, of which half "
        f"are within {model.error:.1%}"
    )
    return [*rows, msgspec.structs.replace(row, note=note)]


def _paired(ours: list[float], reference: list[float]) -> Paired:
    ratios = tuple(a / b for a, b in zip(ours, reference, strict=True))
    return Paired(statistics.median(ours), statistics.median(reference), statistics.median(ratios), ratios)


def _fitting_run() -> Fitting:
    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as name:
        folder = Path(name)
        with _services(folder) as port:
            burst_s = _send(port, NUM_BURST, math.inf, BURST_SEED)
            rate = LOAD * NUM_BURST / burst_s
            _send(port, NUM_FITTED, rate, FIT_SEED)
        recording = read_recording(*_logs(folder))
    (executor,) = recording.executors
    device = FittedDevice(
        description="the demo on this machine's CPU",
        num_blocks=executor.num_blocks,
        block_tokens=executor.block_tokens,
        max_sequence_tokens=executor.max_sequence_tokens,
        max_steps_in_flight=executor.max_steps_in_flight,
        model=fit(recording.steps),
    )
    return Fitting(rate, device)


def _round(fitting: Fitting, num_requests: int, seed: int) -> Round:
    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as name:
        folder = Path(name)
        with _services(folder) as port:
            _send(port, num_requests, fitting.rate, seed)
        return compare(*_logs(folder), fitting.device)


def compare(admission: bytes, scheduler: bytes, device: FittedDevice) -> Round:
    """A run by the logs of both cores, and its replay on a fitted device.

    Raises:
        RuntimeError: a request has no token: the run is void.
    """
    cores: list[tuple[Core, bytes]] = [(AdmissionCore(), admission), (SchedulerCore(), scheduler)]
    checked = [_identical(core, log) for core, log in cores]
    recording = read_recording(admission, scheduler)
    replays = np.array([_replay(recording, device, each) for each in SEEDS])
    return Round(
        live=_figures(recording.served, recording.gaps),
        replayed=np.median(replays, axis=0).tolist(),
        num_records=sum(records for records, _ in checked),
        num_identical=sum(identical for _, identical in checked),
    )


@contextlib.contextmanager
def _services(folder: Path) -> Iterator[int]:
    write_tenants(folder / "data")
    deployment = Deployment(
        data=str(folder / "data"), http=HttpSettings(port=0), record=str(folder / "recorded"), model="demo"
    )
    with contextlib.ExitStack() as stack:
        port, _ = start(deployment, folder, stack)
        yield port


def _send(port: int, count: int, rate: float, seed: int) -> float:
    vocabulary_size = read_config(CHECKPOINT).vocabulary_size
    return uvloop.run(send(port, asks(count, vocabulary_size=vocabulary_size, seed=seed), rate, seed=seed + 1))


def _logs(folder: Path) -> tuple[bytes, bytes]:
    """Of admission and of the scheduler."""
    recorded = folder / "recorded"
    return (recorded / "admission.log").read_bytes(), (recorded / "scheduler.log").read_bytes()


def _identical(core: Core, log: bytes) -> tuple[int, int]:
    """Records of a log, and how many from the beginning a fresh core answers identically."""
    records = list(read_records(log))
    difference = verify(core, records)
    return len(records), len(records) if difference is None else difference.record - 1


def _replay(recording: Recording, device: FittedDevice, seed: int) -> list[float]:
    (policy,) = recording.policies
    outcome = Simulation(
        policy.document, recording.requests, device.device(seed), steps_in_flight=device.max_steps_in_flight
    ).run()
    return _figures(outcome.served, outcome.gaps)


def _figures(served: list[Served], gaps: Gaps) -> list[float]:
    """Milliseconds of `FIGURES`.

    Raises:
        RuntimeError: a request has no token: the run is void.
    """
    waits = [request.first_token_at_s - request.asked.arrived_at_s for request in served if request.first_token_at_s]
    if len(waits) < len(served):
        raise RuntimeError(f"this run is void: {len(served) - len(waits)} of {len(served)} requests got no token")
    samples = {"ttft": sorted(waits), "tbt": np.sort(gaps.seconds).tolist()}
    return [1e3 * percentile(samples[name.split("_")[1]], quantile) for name, quantile in FIGURES.items()]
