"""`fairlead experiment`: a paper's set-up in one command, published figures beside obtained ones.

Knows files, options and the terminal; the experiments are policies/simulation/experiments.
"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import policies
from policies.document.loading import load_policy
from policies.document.problems import PolicyError
from policies.simulation.experiments import ExperimentError, Options
from services.numbers import count, positive, seed, share, share_or_none
from services.policy_reading import read_policy
from services.progress import progress_bar

EXPERIMENTS = {
    name: (f"policies.simulation.experiments.{name}", f"policies.simulation.experiments.{name}_page")
    for name in ("slai", "rad", "amin", "vtc")
}
"""Name -> the experiment, and its page of plots."""
SHIPPED = Path(policies.__file__).parent
BAD_INPUT = 2
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fairlead experiment`."""
    parser.add_argument("experiment", choices=list(EXPERIMENTS), help="whose")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="published traces; without it: synthetic ones")
    parser.add_argument(
        "--policy", nargs="+", default=[], metavar="P", help="names or files; default: those of the paper"
    )
    parser.add_argument("--qps", nargs="+", type=positive, default=[], metavar="Q", help="nominal requests per second")
    parser.add_argument("--seeds", nargs="+", type=seed, default=[], metavar="N", help="of arrivals and order")
    parser.add_argument(
        "--executor-efficiency", type=share, metavar="E", help="share of memory bandwidth that KV reads reach"
    )
    parser.add_argument(
        "--strict-share", type=share_or_none, metavar="X", help="share of requests in the strictest class"
    )
    parser.add_argument("--duration-s", type=positive, metavar="S", help="virtual seconds of one run")
    parser.add_argument(
        "--processes", type=count, default=os.cpu_count() or 1, metavar="N", help="at once (%(default)s: one a core)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", type=Path, metavar="F", help="write a page of plots, too")


def run(args: argparse.Namespace) -> int:
    """0; 2 with one line on stderr when the input is at fault; 130 when interrupted."""
    module_name, page_name = EXPERIMENTS[args.experiment]
    module = importlib.import_module(module_name)
    try:
        if args.html is not None and not args.html.parent.is_dir():
            raise ExperimentError(f"--html {args.html}: there is no folder {args.html.parent}")
        options = Options(
            policies=dict(_document(name, module.OWN) for name in args.policy or module.POLICIES),
            data=args.data,
            qps=tuple(sorted(set(args.qps))),
            seeds=tuple(dict.fromkeys(args.seeds)),
            executor_efficiency=args.executor_efficiency,
            strict_share=args.strict_share,
            duration_s=args.duration_s,
            processes=args.processes,
        )
        with progress_bar(f"fairlead experiment {args.experiment}") as progress:
            figures = module.run(options, progress)
        if args.html is not None:
            # Only a page that is asked for pays for the plotting library's import.
            _write(args.html, importlib.import_module(page_name).html(figures))
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


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ExperimentError(f"--html {path}: cannot be written: {error.strerror}") from error


def _document(name: str, own: Mapping[str, bytes]) -> tuple[str, bytes]:
    """A policy of the experiment's own or a shipped one by its name, or a file by its path; and what it is reported
    as.
    """
    if name in own:
        return name, own[name]
    shipped = SHIPPED / f"{name}.yaml"
    path = shipped if Path(name).name == name and shipped.is_file() else Path(name)
    try:
        document = read_policy(path)
    except OSError as error:
        names = ", ".join([*own] or sorted(file.stem for file in SHIPPED.glob("*.yaml") if file.stem != "tenants"))
        raise ExperimentError(
            f"--policy {name}: cannot be read: {error.strerror}; give a file, or one of {names}"
        ) from error
    load_policy(document, str(path))
    return path.stem, document
