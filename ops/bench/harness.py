"""How a benchmark measures and speaks: pairs of rounds, ratios, one table (`fairlead bench NAME [--json]`).

Each figure is a ratio to a reference measured in the same run, the two in turn, after a warm-up; the statistic is the
median of the per-round ratios. A figure whose rounds spread by more than 20 % is said to be so, never hidden.
"""

import argparse
import importlib
import os
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

BENCHMARKS = {
    "admission": "time of one admission decision, against a bare heap",
    "chaos": "streams, usage and what stays held while processes are killed, stopped and replaced",
    "bad-clients": "token gaps of normal clients beside a thousand slow, half-open or vanishing ones, and what is left",
    "collector": "what readers and memory see of a collector that is down, slow or wrong for a minute",
    "damage": "500 kinds of damage to a policy, a tenants and a deployment file: refused with place and reason",
    "engine": "the engine's throughput, against what the device can do and against other engines",
    "fairness": "shares of two tenants and the isolation of one, live, against fcfs",
    "fuzz": "crashes, leaks and slow frames under mutated frames at each end of the internal streams",
    "fuzz-http": "mutated HTTP requests: each must have a defined end, and nothing may grow or stay",
    "gateway": "CPU per streamed token of the gateway, against a raw socket writer and a FastAPI server",
    "overload": "goodput, memory and recovery under ten times what can be served",
    "parts": "what the parts of tokens' latencies come to, against the clock of their reader",
    "prefix-timing": "what a clock tells a tenant of what another has asked",
    "refusals": "what refusing late requests buys in the simulator, and how many refusals are false",
    "replay-error": "replays of recorded live runs, against what happened in them",
    "scheduler": "time of one step plan, against a heap and a loop",
    "slow-reader": "token gaps of fast readers beside a slow one",
    "tracing": "what recording every token costs, against not doing so and against a span a token",
    "wire": "round trip and codec cost of the streams between services",
}
"""Name -> what it measures; `slow-reader` lives in ops/bench/slow_reader.py."""

NOISY_SPREAD = 0.2


class UnmeasurableError(Exception):
    """This machine lacks what a benchmark needs; the sentence says what."""


class Paired(msgspec.Struct, frozen=True):
    """Medians over rounds of two figures measured in turn, and of their per-round ratio ours / reference."""

    ours: float
    reference: float
    ratio: float
    ratios: tuple[float, ...]

    @property
    def spread(self) -> float:
        """Interquartile range of the ratios over their median."""
        first, _, third = statistics.quantiles(self.ratios, n=4)
        return (third - first) / self.ratio if self.ratio else 0.0

    def inverted(self) -> "Paired":
        """The same rounds with the ratio turned over (reference / ours): how many times cheaper ours is."""
        ratios = tuple(1 / ratio for ratio in self.ratios)
        return Paired(self.ours, self.reference, statistics.median(ratios), ratios)


class Row(msgspec.Struct, frozen=True):
    """One line of a benchmark's answer."""

    metric: str
    unit: str
    ours: float
    reference: float
    ratio: float
    must: float
    stretch: float
    ok: bool
    rounds: int
    spread: float
    load_average: float
    """Over one minute, when the row was made; above the number of cores the figures are doubtful."""
    note: str = ""
    """What else one must know to read it."""


def interleave(
    ours: Callable[[], float], reference: Callable[[], float], *, rounds: int = 5, warmup: int = 1
) -> Paired:
    """Run the two in turn; each call runs one round and returns its figure."""
    pairs = []
    for index in range(warmup + rounds):
        pair = (ours(), reference())
        if index >= warmup:
            pairs.append(pair)
        progress(index + 1, warmup + rounds)
    ratios = tuple(a / b for a, b in pairs)
    return Paired(
        ours=statistics.median(a for a, _ in pairs),
        reference=statistics.median(b for _, b in pairs),
        ratio=statistics.median(ratios),
        ratios=ratios,
    )


def at_most(metric: str, unit: str, paired: Paired, *, must: float, stretch: float) -> Row:
    """A row that holds when the ratio does not exceed `must`."""
    return _row(metric, unit, paired, must, stretch, ok=paired.ratio <= must)


def at_least(metric: str, unit: str, paired: Paired, *, must: float, stretch: float) -> Row:
    """A row that holds when the ratio reaches `must`."""
    return _row(metric, unit, paired, must, stretch, ok=paired.ratio >= must)


def within(metric: str, unit: str, paired: Paired, *, must: float, stretch: float) -> Row:
    """A row that holds when the two differ by no more than `must`; its ratio is the median over rounds of how much.

    Differences of rounds do not cancel out: each counts without its sign.
    """
    error = statistics.median(abs(ratio - 1) for ratio in paired.ratios)
    row = _row(metric, unit, paired, must, stretch, ok=error <= must)
    return msgspec.structs.replace(row, ratio=error)


def progress(done: int, total: int) -> None:
    """Show on a terminal how many rounds are done."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{'#' * done}{'.' * (total - done)} round {done} of {total}", end=end, file=sys.stderr, flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fairlead bench`."""
    parser.add_argument("name", choices=sorted(BENCHMARKS), help="; ".join(f"{k}: {v}" for k, v in BENCHMARKS.items()))
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, at least 5 for a figure to quote")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the rows there, with date and hardware")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="engine: where it runs")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="engine: what a CPU computes in"
    )
    parser.add_argument("--requests", type=int, default=200, help="replay-error, fuzz-http: requests (%(default)s)")
    parser.add_argument(
        "--policy", action="append", metavar="NAME", help="scheduler: a shipped policy, may be repeated (default: all)"
    )
    parser.add_argument(
        "--fault", action="append", metavar="NAME", help="chaos: may be repeated (default: each in turn)"
    )
    parser.add_argument("--kills", type=int, help="chaos: how often each fault strikes (default: a few times)")
    parser.add_argument("--minutes", type=float, help="chaos: how long the soak takes (default: one)")
    parser.add_argument("--frames", type=int, help="fuzz: mutated frames for each place (default: 20,000)")
    parser.add_argument(
        "--listener",
        action="append",
        metavar="PLACE",
        help="fuzz: this place alone, scheduler, admission, gateway or executor; may be given again (default: all)",
    )
    parser.add_argument(
        "--seed", type=int, default=7, help="chaos, fuzz, fuzz-http: of requests and moments (%(default)s)"
    )
    parser.add_argument("--smoke", action="store_true", help="engine: a tiny model, to see that the benchmark works")


def run(args: argparse.Namespace) -> int:
    """Run one benchmark; the exit status is 1 when a row misses its `must`, 2 when nothing could be measured."""
    if args.rounds < 2:
        print("bench: --rounds must be at least 2: a median needs rounds", file=sys.stderr)
        return 2
    module = importlib.import_module(f"ops.bench.{args.name.replace('-', '_')}")
    try:
        rows: list[Row] = module.run(args)
    except UnmeasurableError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_bytes(msgspec.json.format(msgspec.json.encode(_record(rows)), indent=2) + b"\n")
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
    else:
        print(_table(rows))
    return 0 if all(row.ok for row in rows) else 1


def _record(rows: list[Row]) -> dict[str, Any]:
    """Rows, and what one must know to measure them again."""
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    libraries = ("torch", "transformers", "xformers", "triton", "numpy", "msgspec", "aiohttp")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["fairlead", *sys.argv[1:]]),
        "revision": revision.stdout.strip(),
        "hardware": {"processor": _processor(), "cores": len(os.sched_getaffinity(0)), "gpus": _gpus()},
        "versions": {"python": platform.python_version(), **_versions(libraries)},
        "rows": rows,
    }


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _gpus() -> list[str]:
    """Name, driver and memory of each, as the driver says them; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines()


def _versions(libraries: tuple[str, ...]) -> dict[str, str]:
    installed = {distribution.name: distribution.version for distribution in metadata.distributions()}
    return {name: installed[name] for name in libraries if name in installed}


def _row(metric: str, unit: str, paired: Paired, must: float, stretch: float, *, ok: bool) -> Row:
    return Row(
        metric=metric,
        unit=unit,
        ours=paired.ours,
        reference=paired.reference,
        ratio=paired.ratio,
        must=must,
        stretch=stretch,
        ok=ok,
        rounds=len(paired.ratios),
        spread=paired.spread,
        load_average=os.getloadavg()[0],
    )


def _table(rows: list[Row]) -> str:
    lines = [f"{'metric':<44} {'ours':>10} {'reference':>10} {'ratio':>7} {'must':>6} {'stretch':>7}  verdict"]
    for row in rows:
        verdict = "ok" if row.ok else "MISSED"
        if row.spread > NOISY_SPREAD:
            verdict += f" (noisy: rounds spread by {row.spread:.0%})"
        lines.append(
            f"{row.metric:<44} {row.ours:>10.4g} {row.reference:>10.4g} {row.ratio:>7.3f} "
            f"{row.must:>6.3g} {row.stretch:>7.3g}  {verdict}  [{row.unit}]"
        )
    return "\n".join([*lines, *(f"{row.metric}: {row.note}" for row in rows if row.note)])
