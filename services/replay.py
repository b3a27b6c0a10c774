"""`fairlead replay`: run the cores in virtual time over a trace, search a capacity, or verify a recorded log.

Knows options and the terminal; the simulation itself is policies/simulation.
"""

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType

from policies.document.loading import load_policy
from policies.document.problems import PolicyError
from policies.simulation.criteria import MAX_UNFINISHED, CriterionError, parse_criteria
from policies.simulation.devices import HELP as DEVICES_HELP
from policies.simulation.experiments import ExperimentError, spread
from policies.simulation.fitted_model import encode_device
from policies.simulation.parameters import ParameterError
from policies.simulation.profiles import ProfileError
from policies.simulation.report import Figures, report
from policies.simulation.report_table import capacity_table, seeds_table, table
from policies.simulation.synthetic import HELP as SYNTHETIC_HELP
from policies.simulation.timeline import Timeline
from policies.simulation.workload import TraceError
from services.numbers import count, positive, seed, share, share_or_none
from services.progress import progress_bar
from services.replay_inputs import (
    SYNTHETIC_PREFIX,
    ReplayError,
    fit_device,
    keeps_arrivals,
    read_policy_document,
    write_text,
)
from services.replay_log import verify_logs
from services.replay_runs import Run, Search, across, requests_of, runs_of, search, simulate, simulation

BAD_INPUT = 2
INTERRUPTED = 130
DEFAULT_SEED = 42
PRECISION = 0.01


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fairlead replay`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"{SYNTHETIC_HELP}\n\n{DEVICES_HELP}"
    parser.add_argument("--policy", metavar="FILE", help="policy document")
    parser.add_argument(
        "--trace", metavar="TRACE", help=f"CSV file, folder of `fairlead up --record`, or {SYNTHETIC_PREFIX}NAME"
    )
    parser.add_argument("--executor", default="rtx6000ada-mistral7b", metavar="MODEL", help="see below (%(default)s)")
    parser.add_argument("--executors", type=count, default=1, metavar="N", help="how many of them (1)")
    parser.add_argument(
        "--executor-efficiency",
        type=share,
        default=1.0,
        metavar="X",
        help="share of memory bandwidth KV reads reach (1)",
    )
    parser.add_argument(
        "--first-token",
        default="last_chunk",
        choices=["last_chunk", "next_decode"],
        help="which step samples output token 1 (%(default)s)",
    )
    parser.add_argument(
        "--qps", type=positive, metavar="X", help="requests per second; with --capacity where the search begins"
    )
    parser.add_argument("--duration-s", type=positive, metavar="S", help="stop after S seconds of virtual time")
    parser.add_argument(
        "--seeds", type=seed, nargs="+", metavar="N", help=f"of arrivals and order, a run each ({DEFAULT_SEED})"
    )
    parser.add_argument(
        "--processes", type=count, default=os.cpu_count() or 1, metavar="N", help="for several seeds (%(default)s)"
    )
    parser.add_argument("--steps-in-flight", type=int, default=2, choices=[1, 2], help="of each executor (%(default)s)")
    parser.add_argument("--bucket-tokens", type=count, metavar="N", help="width of the buckets of prompt lengths")
    parser.add_argument(
        "--capacity",
        metavar="CRITERIA",
        help="find the largest rate that keeps them, like 'p50(ttft_prefill_s)<0.5,p99(tbt_s.paid)<0.1'",
    )
    parser.add_argument(
        "--capacity-precision", type=share, default=PRECISION, metavar="X", help="of that rate (%(default)s)"
    )
    parser.add_argument(
        "--max-unfinished",
        type=share_or_none,
        default=MAX_UNFINISHED,
        metavar="X",
        help="share of requests that may be without an end at that rate (%(default)s)",
    )
    parser.add_argument("--check", action="store_true", help="assert every invariant after every event")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page of plots")
    parser.add_argument("--log", metavar="DIR", help="folder written by `fairlead up --record DIR`")
    parser.add_argument("--verify", action="store_true", help="compare the log's commands with this version's")
    parser.add_argument("--fit", type=Path, metavar="FILE", help="write the log's executor, for --executor fitted:FILE")


def run(args: argparse.Namespace) -> int:
    """0; 1 when a log does not verify; 2 with one line on stderr when the input is at fault; 130 when interrupted."""
    try:
        if args.log is not None or args.verify or args.fit is not None:
            return _read_log(args)
        return _replay(args)
    except PolicyError as error:
        print(error, file=sys.stderr)
    except CriterionError as error:
        print(f"fairlead replay: --capacity {error}", file=sys.stderr)
    except (ReplayError, TraceError, ParameterError, ProfileError, ExperimentError) as error:
        print(f"fairlead replay: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("fairlead replay: interrupted", file=sys.stderr)
        return INTERRUPTED
    return BAD_INPUT


def _read_log(args: argparse.Namespace) -> int:
    if args.log is None or not (args.verify or args.fit is not None):
        raise ReplayError("--log DIR and --verify go together, or --log DIR and --fit FILE")
    if args.policy is not None or args.trace is not None:
        raise ReplayError("a log holds its policies and its events: leave --policy and --trace out")
    folder = Path(args.log)
    status = verify_logs(folder) if args.verify else 0
    if args.fit is not None:
        fitted = fit_device(folder)
        write_text(args.fit, encode_device(fitted).decode(), "--fit")
        print(f"{args.fit}: fitted to {fitted.model.num_steps} steps, which it meets to {fitted.model.error:.1%}")
    return status


def _replay(args: argparse.Namespace) -> int:
    if args.policy is None or args.trace is None:
        raise ReplayError("say which --policy and which --trace, or --log DIR --verify")
    document = read_policy_document(Path(args.policy))
    policy = load_policy(document, args.policy)
    seeds = list(dict.fromkeys(args.seeds or [DEFAULT_SEED]))
    if len(seeds) > 1 and keeps_arrivals(args.trace):
        raise ReplayError(
            f"{args.trace}: has its own arrivals, so that every seed gives the same run: leave --seeds out"
        )
    wanted = Run(
        document=document,
        trace=args.trace,
        executor=args.executor,
        executor_efficiency=args.executor_efficiency,
        num_executors=args.executors,
        first_token=args.first_token,
        steps_in_flight=args.steps_in_flight,
        seed=seeds[0],
        qps=args.qps,
        duration_s=args.duration_s,
        bucket_tokens=args.bucket_tokens,
        check=args.check,
    )
    if args.capacity is not None:
        figures = _capacity(args, wanted, seeds, [slo.name for slo in policy.classes])
        if args.html is not None:
            _pages().draw_capacity(args.html, wanted, seeds, figures)
        text = capacity_table
    elif len(seeds) > 1:
        figures = _runs(wanted, seeds, args.processes)
        if args.html is not None:
            _pages().draw_seeds(args.html, wanted, seeds, figures)
        text = seeds_table
    else:
        figures = _one(wanted, args.html)
        text = table
    print(json.dumps(figures, indent=2) if args.json else text(figures))
    return 0


def _one(wanted: Run, html: Path | None) -> Figures:
    requests = requests_of(wanted)
    with progress_bar("fairlead replay") as progress:
        simulated = simulation(wanted, requests, progress=lambda _, arrived: progress(arrived, len(requests)))
        timeline = Timeline(simulated) if html is not None else None
        started = time.perf_counter()
        outcome = simulated.run()
    figures = report(outcome, time.perf_counter() - started, bucket_tokens=wanted.bucket_tokens)
    if html is not None and timeline is not None:
        _pages().draw_run(html, wanted, figures, outcome, timeline)
    return figures


def _pages() -> ModuleType:
    """What draws pages; only who asks for one pays for the plotting library's import."""
    return importlib.import_module("services.replay_pages")


def _runs(wanted: Run, seeds: list[int], processes: int) -> Figures:
    """The report of every seed, and under `median`, `min` and `max` every number that all of them have."""
    done = 0
    with progress_bar(f"fairlead replay, {len(seeds)} seeds") as progress:

        def on_done() -> None:
            nonlocal done
            done += 1
            progress(done, len(seeds))

        progress(0, len(seeds))
        runs = spread(simulate, runs_of(wanted, seeds), processes=processes, on_done=on_done)
    return {"policy": runs[0]["policy"], "runs": runs, **across(runs)}


def _capacity(args: argparse.Namespace, wanted: Run, seeds: list[int], classes: list[str]) -> Figures:
    """The largest rate of every seed (`rps`, None where none was kept) with its probes, and these rates together."""
    criteria = parse_criteria(args.capacity, classes)
    searches = [
        Search(
            run=run,
            criteria=args.capacity,
            classes=classes,
            precision=args.capacity_precision,
            max_unfinished=args.max_unfinished,
        )
        for run in runs_of(wanted, seeds)
    ]
    found = spread(search, searches, processes=args.processes, on_done=lambda: None)
    rates = [{"rps": figures["rps"]} for figures in found if figures["rps"] is not None]
    return {
        "policy": load_policy(wanted.document).name,
        "criteria": [criterion.text for criterion in criteria],
        "max_unfinished": args.max_unfinished,
        "precision": args.capacity_precision,
        "capacity": found,
        **across(rates),
    }
