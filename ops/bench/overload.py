"""Ten times what can be served, for a minute (`fairlead bench overload`).

All four services under `fairlead.yaml` as it ships, and a paced engine, whose KV pool is what runs out; clients come
whatever became of those before them, from a process of their own. A round is a fresh start: a steady state at capacity,
the largest load at which as good as everybody gets what the class promises, then ten times that, then capacity again.

- goodput: finished requests a second that kept both limits of their class, over the steady state's.
- memory: the most of any serving process from the overload on, over the most in the second half of the steady state.
- outcomes: requests with one outcome, at their client and in the gateway's record; the rest are too many or too few.
- recovery: seconds after the end until, for six seconds, the median time to first token of those who came within two
  seconds is again what 19 of 20 had in the steady state, that of all rounds together: near capacity the 400 requests of
  one say it to a factor of five and more.
- refusal: CPU of the serving processes for a refusal, over what a request that is served costs them.
"""

import argparse
import contextlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import msgspec

from engine.config import read_config
from engine.demo import CHECKPOINT
from engine.interface import EngineSettings
from ops.bench.deployed import start
from ops.bench.harness import Paired, Row, at_least, at_most, progress
from ops.bench.open_load import FINISHED, REFUSED, Ending
from ops.bench.paced_load import TENANTS, write_tenants
from ops.bench.processes import KEEPER, cpu_s, pids, rss_mib
from policies.document.loading import load_policy
from services.settings import REPOSITORY, Deployment, HttpSettings, MetricsSettings, TelemetrySettings
from services.traffic.reading import read_requests

POLICY = (REPOSITORY / "policies" / "fairlead.yaml").read_text()
CAPACITY_RPS = 14.0
TIMES = 10
POOL_TOKENS = 16_384
STEP_S = 0.03
WARM_S, STEADY_S, OVERLOAD_S, AFTER_S = 10.0, 30.0, 60.0, 30.0
WARM, STEADY, OVERLOAD, AFTER = range(4)
PATIENCE_S = 60.0
BIN_S = 2.0
SAMPLE_S = 0.25
NORMAL = 0.95
"""Of the steady state's requests have their first token in what is called normal."""
NUM_NORMAL = 3
"""Spans in a row."""
FLUSH_S = 2.0
"""After the last end, for the gateway's record to be written."""


class Seen(NamedTuple):
    """What the services' processes were like at a time."""

    at_s: float
    rss_mib: dict[str, float]
    cpu_s: float
    """Of all that serve."""


class Round(NamedTuple):
    """What one round came to."""

    goodput_rps: float
    steady_goodput_rps: float
    memory: float
    grew: str
    """The process that grew most."""
    num_asked: int
    num_ended_once: int
    steady_ttft_s: list[float]
    after: list[Ending]
    refusal_ms: float
    served_ms: float
    outcomes: Counter[str]
    """Of the overload."""
    told: float
    """Share of the refusals that said when to come again."""


class Plan(NamedTuple):
    """How long the phases of a round are, in seconds."""

    warm_s: float = WARM_S
    steady_s: float = STEADY_S
    overload_s: float = OVERLOAD_S
    after_s: float = AFTER_S


def run(arguments: argparse.Namespace) -> list[Row]:
    """Measure."""
    rounds = []
    for number in range(arguments.rounds):
        rounds.append(overload(Plan(), seed=number))
        progress(number + 1, arguments.rounds)
    last = rounds[-1]
    normal_s = _normal_s([wait_s for one in rounds for wait_s in one.steady_ttft_s])
    since_s = WARM_S + STEADY_S + OVERLOAD_S
    outcomes = ", ".join(f"{count} {name}" for name, count in sorted(last.outcomes.items()))
    offered = f"{CAPACITY_RPS:g} requests/s, then {TIMES * CAPACITY_RPS:g}; the last round's overload: {outcomes}"
    rows = [
        (
            at_least(
                "goodput_at_ten_times_capacity",
                "requests/s",
                _paired([(one.goodput_rps, one.steady_goodput_rps) for one in rounds]),
                must=0.9,
                stretch=1.0,
            ),
            offered,
        ),
        (
            at_most(
                "memory_of_the_process_that_grew_most",
                "x",
                _paired([(one.memory, 1.0) for one in rounds]),
                must=1.2,
                stretch=1.05,
            ),
            f"of {', '.join(one.grew for one in rounds)}",
        ),
        (
            at_least(
                "requests_with_exactly_one_outcome",
                "requests",
                _paired([(one.num_ended_once, one.num_asked) for one in rounds]),
                must=1.0,
                stretch=1.0,
            ),
            f"{min(one.told for one in rounds):.1%} of the refusals say when to come again",
        ),
        (
            at_most(
                "recovery_to_normal_ttft",
                "s",
                _paired([(_recovery_s(normal_s, one.after, since_s), 10.0) for one in rounds]),
                must=1.0,
                stretch=0.5,
            ),
            f"normal is {normal_s:.2f} s",
        ),
        (
            at_most(
                "cpu_of_a_refusal",
                "ms",
                _paired([(one.refusal_ms, one.served_ms) for one in rounds]),
                must=0.25,
                stretch=0.1,
            ),
            f"{1e3 / statistics.median(one.refusal_ms for one in rounds):,.0f} refusals a second and core",
        ),
    ]
    return [msgspec.structs.replace(row, note=note) for row, note in rows]


def overload(plan: Plan, *, seed: int) -> Round:
    """One round with a fresh deployment.

    Raises:
        RuntimeError: the services did not start.
    """
    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        write_tenants(folder / "data")
        (folder / "policy.yaml").write_text(POLICY)
        none = MetricsSettings(gateway=None, admission=None, scheduler=None, executor=None)
        deployment = Deployment(
            data=str(folder / "data"),
            policy=str(folder / "policy.yaml"),
            http=HttpSettings(port=0),
            engine=EngineSettings(kind="paced", paced_step_s=STEP_S, kv_pool_tokens=POOL_TOKENS),
            telemetry=TelemetrySettings(metrics=none),
        )
        port, _ = start(deployment, folder, stack)
        watched = pids(str(folder))
        phases = [
            {"rate": CAPACITY_RPS, "seconds": plan.warm_s},
            {"rate": CAPACITY_RPS, "seconds": plan.steady_s},
            {"rate": TIMES * CAPACITY_RPS, "seconds": plan.overload_s},
            {"rate": CAPACITY_RPS, "seconds": plan.after_s},
        ]
        order = {"port": port, "seed": seed, "phases": phases, "patience_s": PATIENCE_S}
        order["vocabulary_size"] = read_config(CHECKPOINT).vocabulary_size
        endings, seen = _load(order, watched)
        time.sleep(FLUSH_S)
        recorded = Counter(row.outcome for row in read_requests(deployment.resolved().data, 1e9))
    return _judged(plan, endings, seen, sum(recorded.values()))


def _load(order: dict[str, object], watched: dict[str, int]) -> tuple[list[Ending], list[Seen]]:
    """What the clients saw, and the processes meanwhile, in seconds since the order was given."""
    seen: list[Seen] = []
    done = threading.Event()
    with subprocess.Popen(
        [sys.executable, "-m", "ops.bench.open_load"],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as clients:
        assert clients.stdin is not None  # noqa: S101  it was asked for
        assert clients.stdout is not None  # noqa: S101
        clients.stdin.write(json.dumps(order) + "\n")
        clients.stdin.flush()
        began_at_s = float(clients.stdout.readline())
        watch = threading.Thread(target=_watch, args=(watched, began_at_s, seen, done))
        watch.start()
        try:
            endings = [Ending(*each) for each in json.loads(clients.stdout.readline())]
        finally:
            done.set()
            watch.join()
            clients.stdin.close()
    return endings, seen


def _watch(watched: dict[str, int], began_at_s: float, seen: list[Seen], done: threading.Event) -> None:
    while not done.wait(SAMPLE_S):
        rss = {name: rss_mib(pid) for name, pid in watched.items()}
        used_s = sum(cpu_s(pid) for name, pid in watched.items() if name != KEEPER)
        seen.append(Seen(time.monotonic() - began_at_s, rss, used_s))


def _judged(plan: Plan, endings: list[Ending], seen: list[Seen], num_recorded: int) -> Round:
    steady_from_s, over_from_s = plan.warm_s, plan.warm_s + plan.steady_s
    over_until_s = over_from_s + plan.overload_s
    steady, over = ([each for each in endings if each.phase == phase] for phase in (STEADY, OVERLOAD))
    memory, grew = _growth(seen, over_from_s - plan.steady_s / 2, over_from_s)
    num_ended = sum(each.outcome in (FINISHED, REFUSED) for each in endings)
    refusals = [each for each in over if each.outcome == REFUSED]
    served_ms = _cpu_ms(seen, steady_from_s, over_from_s) / max(1, _num_served(steady))
    # What the overload's served ones cost is known from the steady state; the rest went into refusals.
    spent_ms = _cpu_ms(seen, over_from_s, over_until_s) - served_ms * _num_served(over)
    return Round(
        goodput_rps=_num_good(over) / plan.overload_s,
        steady_goodput_rps=_num_good(steady) / plan.steady_s,
        memory=memory,
        grew=grew,
        num_asked=len(endings),
        num_ended_once=num_ended - abs(num_recorded - len(endings)),
        steady_ttft_s=[each.ttft_s for each in steady if each.ttft_s is not None],
        after=[each for each in endings if each.phase == AFTER],
        refusal_ms=max(0.001, spent_ms / max(1, len(refusals))),
        served_ms=served_ms,
        outcomes=Counter(each.code or each.outcome for each in over),
        told=sum(each.retry_after for each in refusals) / max(1, len(refusals)),
    )


def _num_served(endings: list[Ending]) -> int:
    return sum(each.outcome == FINISHED for each in endings)


def _num_good(endings: list[Ending]) -> int:
    """Finished requests that kept both limits of their class."""
    policy = load_policy(POLICY.encode())
    limits = {one.name: (one.ttft_s, one.tbt_s) for one in policy.classes}
    promised = {tenant.name: limits[tenant.tier] for tenant in TENANTS}
    return sum(
        each.outcome == FINISHED
        and each.ttft_s is not None
        and each.ttft_s <= promised[each.tenant][0]
        and each.longest_gap_s <= promised[each.tenant][1]
        for each in endings
    )


def _growth(seen: list[Seen], from_s: float, until_s: float) -> tuple[float, str]:
    """The largest growth of a serving process, and which it was."""
    before = [each for each in seen if from_s <= each.at_s < until_s]
    after = [each for each in seen if each.at_s >= until_s]
    grown = {
        name: max(each.rss_mib[name] for each in after) / max(each.rss_mib[name] for each in before)
        for name in before[0].rss_mib
        if name != KEEPER
    }
    most = max(grown, key=lambda name: grown[name])
    return grown[most], most


def _cpu_ms(seen: list[Seen], from_s: float, until_s: float) -> float:
    during = [each for each in seen if from_s <= each.at_s <= until_s]
    return 1e3 * (during[-1].cpu_s - during[0].cpu_s)


def _normal_s(ttft_s: list[float]) -> float:
    """What a share of `NORMAL` had."""
    return sorted(ttft_s)[int(NORMAL * (len(ttft_s) - 1))]


def _recovery_s(normal_s: float, after: list[Ending], since_s: float) -> float:
    """To the beginning of the first spans in a row whose medians are normal; infinite: there are none."""
    spans: dict[int, list[float]] = {}
    for each in after:
        span = spans.setdefault(int((each.asked_at_s - since_s) / BIN_S), [])
        # Who got nothing did not get it in time.
        span.append(float("inf") if each.ttft_s is None else each.ttft_s)
    normal = {number for number, waits_s in spans.items() if statistics.median(waits_s) <= normal_s}
    begins = [number for number in normal if normal.issuperset(range(number, number + NUM_NORMAL))]
    return BIN_S * min(begins, default=math.inf)


def _paired(figures: list[tuple[float, float]]) -> Paired:
    ratios = tuple(ours / reference if reference else 0.0 for ours, reference in figures)
    return Paired(
        statistics.median(ours for ours, _ in figures),
        statistics.median(reference for _, reference in figures),
        statistics.median(ratios),
        ratios,
    )
