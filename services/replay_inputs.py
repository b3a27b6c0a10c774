"""What a replay reads: policy, trace and measurements, from files named on the command line.

Knows files; what is in them is read by policies/simulation.
"""

from collections.abc import Callable
from pathlib import Path

from policies.simulation.devices import named_device
from policies.simulation.executor_model import Device
from policies.simulation.workload import TraceRequest, at_rate, has_arrivals, read_trace, synthetic

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


def read_text(path: Path) -> str:
    """A text file, as spreadsheets write it too.

    Raises:
        ReplayError: it cannot be read, or is no text.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReplayError(f"{path}: is not a text file: {error.reason} at byte {error.start}") from error


def read_device(name: str, efficiency: float) -> Device:
    """The executor model asked for.

    Raises:
        ReplayError, ParameterError, ProfileError: there is none, or its file cannot be used.
    """
    return named_device(name, efficiency=efficiency, read=lambda file: read_text(Path(file)))


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
    return not trace.startswith(SYNTHETIC_PREFIX) and has_arrivals(read_text(Path(trace)))
