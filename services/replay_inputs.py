"""What a replay reads and writes: policy, trace, measurements and pages, in files named on the command line.

Knows files; what is in them is read by policies/simulation.
"""

from collections.abc import Callable
from pathlib import Path

from policies.simulation.devices import FITTED, named_device
from policies.simulation.executor_model import Device
from policies.simulation.fitted_model import FittedDevice, FittedModelError, decode_device
from policies.simulation.fitting import FitError
from policies.simulation.parameters import ParameterError, Parameters
from policies.simulation.recording import Recording, RecordingError, fitted_device, read_recording
from policies.simulation.workload import TraceRequest, at_rate, has_arrivals, read_trace, synthetic
from services.policy_reading import read_policy

SYNTHETIC_PREFIX = "synthetic:"
SYNTHETIC_DURATION_S = 600.0

Requests = list[TraceRequest]


class ReplayError(Exception):
    """Something that was asked for cannot be done; one sentence, naming the file or option."""


def read_bytes(path: Path) -> bytes:
    """A file.

    Raises:
        ReplayError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReplayError(f"{path}: cannot be read: {error.strerror}") from error


def read_policy_document(path: Path) -> bytes:
    """A policy file as one document.

    Raises:
        PolicyError: a file that it names cannot be read or used.
        ReplayError: it cannot be read.
    """
    try:
        return read_policy(path)
    except OSError as error:
        raise ReplayError(f"{path}: cannot be read: {error.strerror}") from error


def read_text(path: Path) -> str:
    """A text file, as spreadsheets write it too.

    Raises:
        ReplayError: it cannot be read, or is no text.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReplayError(f"{path}: is not a text file: {error.reason} at byte {error.start}") from error


def write_text(path: Path, text: str, option: str) -> None:
    """A file that an option asked for.

    Raises:
        ReplayError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ReplayError(f"{option} {path}: cannot be written: {error.strerror}") from error


def read_recorded(folder: Path) -> Recording:
    """The run in a folder written by `fairlead up --record DIR`.

    Raises:
        ReplayError: there is none.
    """
    try:
        return read_recording(*(read_bytes(folder / f"{core}.log") for core in ("admission", "scheduler")))
    except RecordingError as error:
        raise ReplayError(f"{folder}: {error}") from error


def fit_device(folder: Path) -> FittedDevice:
    """The executor of a recorded run, as far as its steps tell.

    Raises:
        ReplayError: there is no such run, it has no executor, or too few steps.
    """
    try:
        return fitted_device([read_recorded(folder)], f"an executor as recorded in {folder}")
    except (RecordingError, FitError) as error:
        raise ReplayError(f"{folder}: {error}") from error


def read_device(name: str, *, efficiency: float, seed: int) -> Device:
    """The executor model asked for; `seed` is of a fitted one's noise.

    Raises:
        ReplayError, ParameterError, ProfileError: there is none, or its file cannot be used.
    """
    parameters = Parameters(name)
    kind, _, file = parameters.name.partition(":")
    if kind != FITTED or not file:
        return named_device(name, efficiency=efficiency, read=lambda file: read_text(Path(file)))
    if efficiency != 1.0:
        raise ParameterError(f"{name}: its KV reads are in what was measured: leave --executor-efficiency out")
    noise = parameters.choice("noise", ("drawn", "mean"))
    parameters.finish()
    path = Path(file)
    try:
        fitted = fit_device(path) if path.is_dir() else decode_device(read_bytes(path), file)
    except FittedModelError as error:
        raise ReplayError(str(error)) from error
    device = fitted.device(seed)
    return device if noise == "drawn" else Device(*device[:4], fitted.model)


def read_workload(
    trace: str, *, seed: int, duration_s: float | None, max_sequence_tokens: int
) -> Callable[[float | None], Requests]:
    """What gives the requests at a rate; None: at the trace's own.

    Raises:
        ReplayError, TraceError, ParameterError: there is no such trace. So may the function that is returned.
    """
    if trace.startswith(SYNTHETIC_PREFIX):
        name = trace.removeprefix(SYNTHETIC_PREFIX)
        wanted_s = duration_s or SYNTHETIC_DURATION_S
        return lambda qps: synthetic(
            name, qps=qps, duration_s=wanted_s, seed=seed, max_sequence_tokens=max_sequence_tokens
        )
    if Path(trace).is_dir():
        recorded = read_recorded(Path(trace)).requests
        return lambda qps: _as_recorded(recorded, trace, qps)
    text = read_text(Path(trace))
    return lambda qps: read_trace(text, trace, qps=qps, seed=seed)


def read_scaled_workload(
    trace: str, *, seed: int, duration_s: float | None, max_sequence_tokens: int
) -> Callable[[float], Requests]:
    """What gives the requests at any rate: the arrivals of a trace that has its own are stretched.

    Raises:
        ReplayError, TraceError, ParameterError: there is no such trace. So may the function that is returned.
    """
    requests = read_workload(trace, seed=seed, duration_s=duration_s, max_sequence_tokens=max_sequence_tokens)
    if not keeps_arrivals(trace):
        return requests
    own = requests(None)
    return lambda qps: at_rate(own, qps)


def keeps_arrivals(trace: str) -> bool:
    """Whether a trace says when its requests came, so that no seed changes them.

    Raises:
        ReplayError: it cannot be read.
    """
    if trace.startswith(SYNTHETIC_PREFIX):
        return False
    return Path(trace).is_dir() or has_arrivals(read_text(Path(trace)))


def _as_recorded(requests: Requests, trace: str, qps: float | None) -> Requests:
    if qps is not None:
        raise ReplayError(f"{trace}: --qps is for traces without arrival times; a recorded run has its own")
    if not requests:
        raise ReplayError(f"{trace}: there is no request in this recorded run")
    return requests
