"""Faults under load: are streams whole, exact and charged once when processes die, stall or are replaced?

A deployment as `fairlead up` starts it, with the demo model on the CPU in float32, serves 32 streams at any time:
greedy, seeded, with grammars and with penalties, and a few with several choices, stop strings, log-probabilities or
no streaming. First undisturbed, which gives the right answers; then while a fault strikes again and again at moments
drawn from `--seed`. Every stream whose gateway was not killed must end with exactly the right answer, usage must be the
sum of what clients were told, and nothing may stay held when they have left.

Faults: `kill-NAME` (-9) of each service, of each in turn (`kill-any`) and of two at once (`kill-two`), some of them
again while they start; `stop-NAME`: SIGSTOP, which the supervisor must notice; `wake-NAME`: it does not, so that the
process is woken when its neighbours have long gone on without it, and must find that all of them have left it;
`restart`: `fairlead restart` of all services; `soak`: four fifths of what the machine can do, while readers leave and
the policy is edited.

    fairlead bench chaos                                         all of them, three times each and a minute of soak
    fairlead bench chaos --fault kill-executor --kills 30        one, as often as the promise says
    fairlead bench chaos --fault soak --minutes 10

What is remembered of requests on purpose is kept small here, so that the growth of memory in a soak is a leak's. It is
the slope of a least-squares line through the medians of twelve blocks of samples, after the first 30 % of the time.

Seen on two cores, every invariant checked after every event: of 30 kills each of the
executor (164 streams went on over a kill or between two), the scheduler (154), admission (801) and a gateway (1,475, of
which 848 were its own), no stream lost, changed or refused, usage exact, nothing held; readers waited 3.5, 2.3, 0.0 and
0.1 s in the median, mostly for processes to start. In nine minutes of soak 14,260 streams, none lost or changed, and
resident memory grew by 1.25 % in ten minutes (95 %: 0.19 %).
"""

import argparse
import os
from collections import Counter

from ops.bench.chaos_faults import FAULTS, Fault
from ops.bench.chaos_fences import words
from ops.bench.chaos_runs import Outcome, outcome
from ops.bench.chaos_soak import SOAK, Growth, soak
from ops.bench.harness import Row, UnmeasurableError

SHORT_KILLS = 3
SHORT_MINUTES = 1.0
MOST_GROWTH = 0.02
"""Of resident memory, in ten minutes."""


def run(arguments: argparse.Namespace) -> list[Row]:
    """Each fault asked for, on services of its own."""
    known = (*FAULTS, SOAK)
    names = arguments.fault or known
    if unknown := [name for name in names if name not in known]:
        raise UnmeasurableError(f"--fault {unknown[0]}: there is no such fault; there are {', '.join(known)}")
    rows: list[Row] = []
    for name in names:
        if name == SOAK:
            seen, growth = soak(arguments.minutes or SHORT_MINUTES, arguments.seed)
            rows += [*_rows(seen), _grows(growth)]
        else:
            seen = outcome(FAULTS[name], arguments.kills or SHORT_KILLS, arguments.seed)
            rows += [*_rows(seen), *_pauses(FAULTS[name], seen), *_fences(seen)]
    return rows


def _rows(seen: Outcome) -> list[Row]:
    tally = seen.tally
    num = tally.num["complete"] + tally.num["cut"] + tally.num["left"]
    notes = [f"{seen.strikes.words()}; {tally.words()}; {seen.took_s:.0f} s", *tally.problems]
    bad = tally.num["failed"] + tally.num["wrong"]
    held = sum(seen.left.values())
    return [
        _none(f"{seen.fault}: lost or changed streams", "streams", bad, num, "; ".join(notes)),
        _none(f"{seen.fault}: refused", "requests", tally.num["refused"], num, _most(tally.refusals)),
        _none(f"{seen.fault}: usage differs", "runs", int(bool(seen.usage)), 1, seen.usage),
        _none(f"{seen.fault}: held in the end", "things", held, num, f"{seen.left}" if held else ""),
        _none(f"{seen.fault}: errors in logs", "lines", len(seen.trouble), num, "; ".join(seen.trouble[:5])),
    ]


def _pauses(fault: Fault, seen: Outcome) -> list[Row]:
    """Where there is a limit to them."""
    if fault.pause_s is None:
        return []
    late = sum(pause_s > fault.pause_s for pause_s in seen.strikes.pauses_s)
    note = f"longer than {fault.pause_s:g} s" if late else ""
    return [_none(f"{fault.name}: not recovered in time", "strikes", late, seen.strikes.num, note)]


def _fences(seen: Outcome) -> list[Row]:
    """Where processes were stopped."""
    fences = seen.strikes.fences
    if not fences:
        return []
    loose = sum(not fence.holds for fence in fences)
    return [_none(f"{seen.fault}: woken and not fenced off", "processes", loose, len(fences), words(fences))]


def _grows(growth: Growth) -> Row:
    """It holds when no slope within the uncertainty exceeds what may be: a short run says nothing for certain."""
    share = growth.in_ten_minutes
    return Row(
        metric=f"{SOAK}: growth of memory in ten minutes",
        unit="MiB",
        ours=share * growth.rss_bytes / 2**20,
        reference=growth.rss_bytes / 2**20,
        ratio=share,
        must=MOST_GROWTH,
        stretch=0,
        ok=share - growth.uncertainty <= MOST_GROWTH,
        rounds=growth.num_samples,
        spread=0.0,
        load_average=os.getloadavg()[0],
        note=growth.words(),
    )


def _most(refusals: Counter[str]) -> str:
    return "; ".join(f"{count} x {text}" for text, count in refusals.most_common(3))


def _none(metric: str, unit: str, count: int, reference: int, note: str = "") -> Row:
    """A row of what must not be."""
    return Row(
        metric=metric,
        unit=unit,
        ours=count,
        reference=reference,
        ratio=count / max(1, reference),
        must=0,
        stretch=0,
        ok=count == 0,
        rounds=1,
        spread=0.0,
        load_average=os.getloadavg()[0],
        note=note,
    )
