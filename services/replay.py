"""`fairlead replay`: run the cores in virtual time over a trace, or verify a recorded log.

Knows files, options and the terminal; the simulation itself is policies/simulation.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from policies.admission.core import AdmissionCore
from policies.document.loading import load_policy
from policies.document.problems import PolicyError
from policies.event_log import Core, CutShortError, Difference, EventLogError, Record, read_records, verify
from policies.events import Started
from policies.scheduling.core import SchedulerCore
from policies.simulation.driver import Simulation
from policies.simulation.executor_model import DEVICES
from policies.simulation.report import report
from policies.simulation.report_table import table
from policies.simulation.workload import SYNTHETIC, TraceError, TraceRequest, read_trace, synthetic

SYNTHETIC_PREFIX = "synthetic:"
SYNTHETIC_DURATION_S = 600.0
BAD_INPUT = 2
PROGRESS_EVERY_S = 0.2


class ReplayError(Exception):
    """Something that was asked for cannot be done; one sentence, naming the file or option."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fairlead replay`."""
    parser.add_argument("--policy", metavar="FILE", help="policy document")
    parser.add_argument(
        "--trace", metavar="CSV", help=f"trace file, or {SYNTHETIC_PREFIX}NAME with NAME one of {', '.join(SYNTHETIC)}"
    )
    parser.add_argument(
        "--executor", default="rtx6000ada-mistral7b", choices=list(DEVICES), help="device model (%(default)s)"
    )
    parser.add_argument("--executors", type=_count, default=1, metavar="N", help="how many of them (1)")
    parser.add_argument(
        "--efficiency", type=_share, default=1.0, metavar="X", help="share of memory bandwidth KV reads reach (1)"
    )
    parser.add_argument(
        "--first-token",
        default="last_chunk",
        choices=["last_chunk", "next_decode"],
        help="which step samples output token 1 (%(default)s)",
    )
    parser.add_argument("--qps", type=_positive, metavar="X", help="requests per second, for traces of lengths")
    parser.add_argument("--duration-s", type=_positive, metavar="S", help="stop after S seconds of virtual time")
    parser.add_argument("--seed", type=_seed, default=42, metavar="N", help="of arrivals and order (%(default)s)")
    parser.add_argument("--steps-in-flight", type=int, default=2, choices=[1, 2], help="of each executor (%(default)s)")
    parser.add_argument("--check", action="store_true", help="assert every invariant after every event")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--log", metavar="DIR", help="folder written by `fairlead up --record DIR`")
    parser.add_argument("--verify", action="store_true", help="compare the log's commands with this version's")


def run(args: argparse.Namespace) -> int:
    """0; 1 when a log does not verify; 2 with one line on stderr when the input is at fault."""
    try:
        if args.log is not None or args.verify:
            return _verify(args)
        return _simulate(args)
    except PolicyError as error:
        print(error, file=sys.stderr)
    except (ReplayError, TraceError) as error:
        print(f"fairlead replay: {error}", file=sys.stderr)
    return BAD_INPUT


def _simulate(args: argparse.Namespace) -> int:
    if args.policy is None or args.trace is None:
        raise ReplayError("say which --policy and which --trace, or --log DIR --verify")
    document = _read(Path(args.policy))
    load_policy(document, args.policy)
    device = DEVICES[args.executor](args.efficiency)
    requests = _requests(args, device.max_sequence_tokens)
    progress = _Progress(len(requests)) if sys.stderr.isatty() else None
    started = time.perf_counter()
    outcome = Simulation(
        document,
        requests,
        device,
        first_token=args.first_token,
        num_executors=args.executors,
        steps_in_flight=args.steps_in_flight,
        duration_s=args.duration_s,
        check=args.check,
        progress=progress.show if progress else None,
    ).run()
    figures = report(outcome, time.perf_counter() - started)
    if progress:
        progress.clear()
    print(json.dumps(figures, indent=2) if args.json else table(figures))
    return 0


def _requests(args: argparse.Namespace, max_sequence_tokens: int) -> list[TraceRequest]:
    if args.trace.startswith(SYNTHETIC_PREFIX):
        return synthetic(
            args.trace.removeprefix(SYNTHETIC_PREFIX),
            qps=args.qps,
            duration_s=args.duration_s or SYNTHETIC_DURATION_S,
            seed=args.seed,
            max_sequence_tokens=max_sequence_tokens,
        )
    try:
        text = _read(Path(args.trace)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReplayError(f"{args.trace}: is not a text file: {error.reason} at byte {error.start}") from error
    return read_trace(text, args.trace, qps=args.qps, seed=args.seed)


def _verify(args: argparse.Namespace) -> int:
    if args.log is None or not args.verify:
        raise ReplayError("--log DIR and --verify go together")
    if args.policy is not None or args.trace is not None:
        raise ReplayError("a log holds its policies and its events: leave --policy and --trace out")
    cores: dict[str, Core] = {"admission": AdmissionCore(), "scheduler": SchedulerCore()}
    status = 0
    for name, core in cores.items():
        path = Path(args.log) / f"{name}.log"
        try:
            num_records, difference, cut = _compare(core, _read(path))
        except EventLogError as error:
            raise ReplayError(f"{path}: {error}") from error
        if difference is None:
            print(f"{path}: {num_records} records, identical commands{cut}")
        else:
            status = 1
            print(f"{path}: after {num_records} identical records: {difference}")
    return status


def _compare(core: Core, log: bytes) -> tuple[int, Difference | None, str]:
    """Records answered identically, the first difference, and how the log ends if it is cut short.

    Raises:
        EventLogError: there is nothing to verify, or a record in it is none of this version's.
    """
    num_records = 0

    def counted() -> Iterator[Record]:
        nonlocal num_records
        for record in read_records(log):
            if num_records == 0 and not isinstance(record.event, Started):
                raise EventLogError(f"begins with {type(record.event).__name__}; a log to verify begins with Started")
            yield record
            num_records += 1

    cut = ""
    try:
        difference = verify(core, counted())
    except CutShortError as error:
        difference, cut = None, f"; {error}"
    if num_records == 0 and difference is None:
        raise EventLogError("holds no whole record, so there is nothing to verify")
    return num_records, difference, cut


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReplayError(f"{path}: cannot be read: {error.strerror}") from error


class _Progress:
    """One line on a terminal: how many requests have arrived and how far virtual time is."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._shown_at = 0.0

    def show(self, now: float, arrived: int) -> None:
        """Redraw, a few times a second."""
        wall = time.perf_counter()
        if wall - self._shown_at < PROGRESS_EVERY_S:
            return
        self._shown_at = wall
        filled = 30 * arrived // self._total
        bar = "#" * filled + "." * (30 - filled)
        sys.stderr.write(f"\r[{bar}] {arrived}/{self._total} requests, {now:.0f} s simulated")
        sys.stderr.flush()

    def clear(self) -> None:
        """Leave an empty line."""
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def _positive(text: str) -> float:
    value = _number(text)
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _share(text: str) -> float:
    value = _number(text)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def _count(text: str) -> int:
    value = _number(text)
    if value < 1 or not value.is_integer():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return int(value)


def _seed(text: str) -> int:
    value = _number(text)
    if not 0 <= value < 2**32 or not value.is_integer():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 4294967295")
    return int(value)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a number") from error
