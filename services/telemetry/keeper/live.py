"""What the console shows of the last minute: rates, latencies and kept promises by class, service by tenant.

Owns one record for each second and sums them when asked; knows no sockets, and the time only as it is told. Percentiles
come from counts in buckets 2 % apart: counts of several gateways add up, percentiles would not.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from services.telemetry.keeper.requests import Batch, Request
from services.telemetry.keeper.verdict import Verdict

WINDOW_S = 60
"""Of percentiles and promises."""
RATE_S = 5
"""Of rates: long enough not to flicker, short enough to follow."""
TOP_TENANTS = 10
OTHER = "other tenants"
NO_CLASS = "not released"
SHORTEST_S, GROWTH, NUM_BUCKETS = 1e-5, 1.02, 900
"""The last bucket begins at nine minutes."""
EDGES_S = SHORTEST_S * GROWTH ** np.arange(NUM_BUCKETS - 1)
NS = 1e9

Counts = NDArray[np.int64]


class OfClass:
    """One second of one class."""

    __slots__ = ("checked", "first", "gaps", "missed", "num_requests", "num_tokens")

    def __init__(self) -> None:
        self.num_requests = 0
        """That ended."""
        self.num_tokens = 0
        self.first: Counts | None = None
        """Times to the first token, by bucket."""
        self.gaps: Counts | None = None
        self.checked: Counter[str] = Counter()
        """Promises looked at, broken or not."""
        self.missed: Counter[str] = Counter()


class Second:
    """What readers got in one second."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.classes: dict[str, OfClass] = {}
        self.tenants: Counter[str] = Counter()

    def of(self, slo_class: str) -> OfClass:
        """A class's share of it."""
        name = slo_class or NO_CLASS
        return self.classes.setdefault(name, OfClass())


class ClassSums(msgspec.Struct):
    """What readers of a class got at one gateway."""

    num_requests: int = 0
    """Of the last `RATE_S`, as the tokens."""
    num_tokens: int = 0
    first: dict[int, int] = {}
    """Of the window, as what follows: counts by bucket."""
    gaps: dict[int, int] = {}
    checked: dict[str, int] = {}
    missed: dict[str, int] = {}


class Sums(msgspec.Struct):
    """The last minute of one gateway, in counts."""

    unix_s: int
    """The last second that is whole."""
    classes: dict[str, ClassSums] = {}
    tenants: dict[str, int] = {}
    """Tokens of the last `RATE_S`."""


class Live:
    """The last minute, second by second."""

    def __init__(self) -> None:
        self._seconds: deque[Second] = deque(maxlen=WINDOW_S + 1)

    def tokens(self, batch: Batch, unix_s: float) -> None:
        """Tokens that readers got."""
        second = self._second(unix_s)
        slices: dict[str, list[NDArray[np.int64]]] = {}
        for owner, start, end in zip(batch.owners, batch.bounds, batch.bounds[1:], strict=False):
            second.tenants[owner.began.tenant] += end - start
            slices.setdefault(owner.slo_class, []).append(batch.gaps_ns[start:end])
        for slo_class, gaps_ns in slices.items():
            ours, gaps_s = second.of(slo_class), np.concatenate(gaps_ns) / NS
            ours.num_tokens += len(gaps_s)
            ours.gaps = _added(ours.gaps, gaps_s)
        for request, num_tokens in batch.whole:
            second.of(request.slo_class).num_tokens += num_tokens
            second.tenants[request.began.tenant] += num_tokens
        for output, is_first in batch.begun:
            request = output.request
            ours = second.of(request.slo_class)
            ours.num_tokens += 1
            second.tenants[request.began.tenant] += 1
            if is_first:
                # A prompt is served when its first token comes; what the prefix cache had cost nothing.
                second.tenants[request.began.tenant] += max(0, request.began.prompt_tokens - request.prefix_hit_tokens)
                if request.began.streamed:
                    first_s = (output.first_written_ns - request.began.received_ns) / NS
                    ours.first = _added(ours.first, np.array([first_s]))

    def ended(self, request: Request, verdict: Verdict, unix_s: float) -> None:
        """A request is over."""
        ours = self._second(unix_s).of(request.slo_class)
        ours.num_requests += 1
        ours.checked.update(verdict.checked)
        ours.missed.update(list(verdict.missed))

    def sums(self, unix_s: float) -> Sums:
        """Of now."""
        # The second that goes on is not whole yet.
        last = int(unix_s) - 1
        window = [each for each in self._seconds if last - WINDOW_S < each.number <= last]
        recent = [each for each in window if last - RATE_S < each.number]
        names = dict.fromkeys(name for each in window for name in each.classes)
        served: Counter[str] = Counter()
        for each in recent:
            served.update(each.tenants)
        return Sums(last, {name: _class_sums(name, window, recent) for name in names}, served)

    def _second(self, unix_s: float) -> Second:
        number = int(unix_s)
        # A wall clock that was set back adds to the newest second until it is where it was.
        if not self._seconds or self._seconds[-1].number < number:
            self._seconds.append(Second(number))
        return self._seconds[-1]


def _class_sums(name: str, window: list[Second], recent: list[Second]) -> ClassSums:
    mine = [each.classes[name] for each in window if name in each.classes]
    newest = [each.classes[name] for each in recent if name in each.classes]
    checked: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    for each in mine:
        checked.update(each.checked)
        missed.update(each.missed)
    return ClassSums(
        sum(each.num_requests for each in newest),
        sum(each.num_tokens for each in newest),
        _by_bucket([each.first for each in mine]),
        _by_bucket([each.gaps for each in mine]),
        checked,
        missed,
    )


def _by_bucket(counts: Sequence[Counts | None]) -> dict[int, int]:
    total = sum((each for each in counts if each is not None), np.zeros(NUM_BUCKETS, np.int64))
    buckets = np.flatnonzero(total)
    return dict(zip(buckets.tolist(), total[buckets].tolist(), strict=True))


def figures(of_gateways: Sequence[Sums]) -> dict[str, Any]:
    """Of all of them, of which there is at least one; times in seconds, rates a second, shares of 1. What nobody
    measured is null.
    """
    names = sorted({name for each in of_gateways for name in each.classes})
    served: Counter[str] = Counter()
    for each in of_gateways:
        served.update(each.tenants)
    return {
        "unix_s": of_gateways[0].unix_s,
        "classes": {
            name: _class_figures([each.classes[name] for each in of_gateways if name in each.classes]) for name in names
        },
        "tenants": _tenants(served),
    }


def _class_figures(mine: list[ClassSums]) -> dict[str, float | None]:
    found: dict[str, float | None] = {
        "requests_per_s": _rounded(sum(each.num_requests for each in mine) / RATE_S),
        "tokens_per_s": _rounded(sum(each.num_tokens for each in mine) / RATE_S),
    }
    for slo, counts in (("ttft", [each.first for each in mine]), ("tbt", [each.gaps for each in mine])):
        total: Counter[int] = Counter()
        for each in counts:
            total.update(each)
        for percent in (50, 99):
            found[f"{slo}_p{percent}_s"] = _percentile(total, percent)
        checked = sum(each.checked.get(slo, 0) for each in mine)
        missed = sum(each.missed.get(slo, 0) for each in mine)
        found[f"{slo}_attained"] = _rounded(1 - missed / checked) if checked else None
    return found


def _tenants(served: Counter[str]) -> dict[str, float]:
    """Tokens a second, the most served first; those past the tenth are one."""
    ordered = sorted(served.items(), key=lambda item: (-item[1], item[0]))
    shown = {name: _rounded(count / RATE_S) for name, count in ordered[:TOP_TENANTS]}
    if rest := sum(count for _, count in ordered[TOP_TENANTS:]):
        shown[OTHER] = _rounded(rest / RATE_S)
    return shown


def _added(counts: Counts | None, values_s: NDArray[np.float64]) -> Counts:
    if counts is None:
        counts = np.zeros(NUM_BUCKETS, np.int64)
    counts += np.bincount(np.searchsorted(EDGES_S, values_s), minlength=NUM_BUCKETS)
    return counts


def _percentile(counts: Counter[int], percent: int) -> float | None:
    """The value below which so many lie, in the middle of its bucket."""
    rank = -(-counts.total() * percent // 100)
    below = 0
    for bucket in sorted(counts):
        below += counts[bucket]
        if below >= rank:
            return _rounded(float(EDGES_S[min(bucket, NUM_BUCKETS - 2)] / GROWTH**0.5))
    return None


def _rounded(value: float) -> float:
    """To four digits: a page that is sent 900 of these has no use for more."""
    return float(f"{value:.4g}")


def running(requests: Iterable[Request], now_ns: int) -> list[dict[str, Any]]:
    """Requests that have not ended, as a list shows them."""
    return [
        {
            "id": request.began.answer_id,
            "tenant": request.began.tenant,
            "class": request.slo_class,
            "prompt_tokens": request.began.prompt_tokens,
            "output_tokens": sum(len(table) for output in request.outputs.values() for table in output.tokens),
            "age_s": _rounded((now_ns - request.began.received_ns) / NS),
        }
        for request in requests
    ]
