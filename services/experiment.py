"""`fairlead experiment`: a paper's set-up in one command, published figures beside obtained ones.

Knows files, options and the terminal; the experiments are policies/simulation/experiments.
"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

import policies
from policies.document.loading import load_policy
from policies.document.problems import PolicyError
from policies.simulation.experiments import ExperimentError, Options, Progress

EXPERIMENTS = {
    "slai": "policies.simulation.experiments.slai",
    "rad": "policies.simulation.experiments.rad",
}
SHIPPED = Path(policies.__file__).parent
BAD_INPUT = 2
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fairlead experiment`."""
    parser.add_argument("experiment", choices=list(EXPERIMENTS), help="whose")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="published traces; without it: synthetic ones")
    parser.add_argument(
        "--policy", nargs="+", default=[], metavar="P", help="shipped names or files; default: those of the paper"
    )
    parser.add_argument("--qps", nargs="+", type=_positive, default=[], metavar="Q", help="nominal requests per second")
    parser.add_argument("--seeds", nargs="+", type=_seed, default=[], metavar="N", help="of arrivals and order")
    parser.add_argument(
        "--executor-efficiency", type=_share, metavar="E", help="share of memory bandwidth that KV reads reach"
    )
    parser.add_argument(
        "--strict-share", type=_share_or_none, metavar="X", help="share of requests in the strictest class"
    )
    parser.add_argument("--duration-s", type=_positive, metavar="S", help="virtual seconds of one run")
    parser.add_argument(
        "--processes", type=_count, default=os.cpu_count() or 1, metavar="N", help="at once (%(default)s: one a core)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """0; 2 with one line on stderr when the input is at fault; 130 when interrupted."""
    module = importlib.import_module(EXPERIMENTS[args.experiment])
    try:
        options = Options(
            policies=dict(_document(name) for name in args.policy or module.POLICIES),
            data=args.data,
            qps=tuple(sorted(set(args.qps))),
            seeds=tuple(dict.fromkeys(args.seeds)),
            executor_efficiency=args.executor_efficiency,
            strict_share=args.strict_share,
            duration_s=args.duration_s,
            processes=args.processes,
        )
        with _progress(f"fairlead experiment {args.experiment}") as progress:
            figures = module.run(options, progress)
    except PolicyError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except ExperimentError as error:
        print(f"fairlead experiment: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("fairlead experiment: interrupted", file=sys.stderr)
        return INTERRUPTED
    print(json.dumps(figures, indent=2) if args.json else module.table(figures))
    return 0


def _document(name: str) -> tuple[str, bytes]:
    """A shipped policy by its name, or a file by its path; and what it is reported as."""
    shipped = SHIPPED / f"{name}.yaml"
    path = shipped if Path(name).name == name and shipped.is_file() else Path(name)
    try:
        document = path.read_bytes()
    except OSError as error:
        names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml") if file.stem != "tenants"))
        raise ExperimentError(
            f"--policy {name}: cannot be read: {error.strerror}; give a file, or one of {names}"
        ) from error
    load_policy(document, str(path))
    return path.stem, document


@contextmanager
def _progress(title: str) -> Iterator[Progress]:
    """A bar on a terminal, otherwise nothing."""
    console = Console(stderr=True)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


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


def _share_or_none(text: str) -> float:
    value = _number(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
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
