"""Everything the keeper does with records, without a socket or a clock: taken in, put together, counted, judged, told.

Owns the open requests, the metrics made of tokens and the stories of recent requests. The process around it
(`process.py`) feeds it and sends what it gives.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from services.telemetry import names
from services.telemetry.keeper.attainment import Attainment
from services.telemetry.keeper.live import Live
from services.telemetry.keeper.requests import Batch, Open, Request
from services.telemetry.keeper.settings import KeeperSettings
from services.telemetry.keeper.spans import Written as Finished
from services.telemetry.keeper.steps import Steps
from services.telemetry.keeper.verdict import Judge, Verdict
from services.telemetry.metrics import Exemplar, Registry
from services.telemetry.records import AnyRecord, Began, Ended, Let, PolicyInForce, Step, Written
from services.telemetry.stamps import CAUSES, FIRST_PARTS, TOKEN_PARTS

REQUEST_TOKENS = 20
"""As which a request counts beside its tokens: one that has none takes memory too, and there may be any number of them.
"""
NS = 1e9
NO_CLASS = "none"
EVERY = slice(None)


class TokenMetrics:
    """Distributions over tokens and requests."""

    def __init__(self, registry: Registry) -> None:
        self.gaps = registry.histogram(names.TOKEN_GAP)
        self.parts = registry.histogram(names.TOKEN_LATENCY)
        self.waits = registry.histogram(names.TOKEN_WAIT)
        self.first = registry.histogram(names.TIME_TO_FIRST_TOKEN)
        self.first_parts = registry.histogram(names.FIRST_TOKEN_LATENCY)
        self.per_token = registry.histogram(names.TIME_PER_OUTPUT_TOKEN)
        self.duration = registry.histogram(names.REQUEST_DURATION)
        self.usage = registry.counter(names.TOKEN_USAGE)
        self.requests = registry.counter(names.REQUESTS)
        self.checked = registry.counter(names.SLO_KEPT)
        self.misses = registry.counter(names.SLO_MISSES)
        self.attainment = registry.gauge(names.SLO_ATTAINMENT)
        self._recent = Attainment()

    def batch(self, batch: Batch, unix_s: float) -> None:
        """Tokens that readers got."""
        self.attainment.replace(self._recent.shares(unix_s))
        if not batch.owners:
            return
        names_of_owners = [owner.slo_class or NO_CLASS for owner in batch.owners]
        classes = list(dict.fromkeys(names_of_owners))
        numbers = [classes.index(name) for name in names_of_owners]
        of_row = np.repeat(np.array(numbers, np.int8), np.diff(batch.bounds)) if len(classes) > 1 else None
        for number, name in enumerate(classes):
            mine = EVERY if of_row is None else np.flatnonzero(of_row == number)
            gaps = batch.gaps_ns[mine]
            self.gaps.observe_all(gaps / NS, name)
            for column, part in enumerate(TOKEN_PARTS):
                self.parts.observe_all(batch.parts[mine, column] / NS, name, part)
            slowest = int(np.argmax(gaps))
            row = slowest if isinstance(mine, slice) else int(mine[slowest])
            owner = batch.owners[bisect_right(batch.bounds, row) - 1]
            self.gaps.exemplify(Exemplar(int(gaps[slowest]) / NS, owner.began.trace_id, unix_s), name)
        waited = batch.parts[:, 0]
        counts = np.bincount(batch.causes)
        for cause in np.flatnonzero(counts).tolist():
            mine = EVERY if counts[cause] == len(waited) else np.flatnonzero(batch.causes == cause)
            self.waits.observe_all(waited[mine] / NS, CAUSES[cause])

    def ended(self, request: Request, verdict: Verdict, unix_s: float) -> None:
        """A request is over."""
        ended, began = request.ended, request.began
        if ended is None:
            return
        name = request.slo_class or NO_CLASS
        self.requests.add(1, ended.outcome, ended.code)
        self.usage.add(began.prompt_tokens - request.prefix_hit_tokens, "prompt")
        self.usage.add(request.prefix_hit_tokens, "cached")
        self.usage.add(ended.output_tokens, "output")
        num_tokens = sum(len(output.stamps()) for output in request.outputs.values())
        duration_s = (ended.ended_ns - began.received_ns) / NS
        if num_tokens:
            self.duration.observe(duration_s, name)
        if verdict.ttft_s is None:
            return
        self.first.observe(verdict.ttft_s, name)
        self.first.exemplify(Exemplar(verdict.ttft_s, began.trace_id, unix_s), name)
        for part, spent_ns in zip(FIRST_PARTS, verdict.first_parts, strict=True):
            self.first_parts.observe(spent_ns / NS, name, part)
        if num_tokens > len(request.outputs):
            self.per_token.observe((duration_s - verdict.ttft_s) / (num_tokens - len(request.outputs)), name)
        for slo in verdict.checked:
            self.checked.add(1, name, slo)
            self._recent.count((name, slo), unix_s, missed=slo in verdict.missed)
        for slo, part in verdict.missed.items():
            self.misses.add(1, name, slo, part)


class Keeper:
    """From records to metrics and ended requests.

    Args:
        unix_s: the time now, since 1970.
        settings: how much is remembered, and who is asked about.
    """

    def __init__(self, unix_s: Callable[[], float], settings: KeeperSettings) -> None:
        self.gateway = settings.name
        """Whose requests these are."""
        self.registry = Registry()
        self.open = Open()
        self.steps = Steps(settings.scheduler, settings.instance, settings.recent_steps)
        self.judge = Judge()
        self.live = Live()
        self.recent: OrderedDict[str, Finished] = OrderedDict()
        """By id of the answer, the oldest first."""
        self._recent_tokens = 0
        self._most_recent_tokens = settings.recent_tokens
        self._unix_s = unix_s
        self._metrics = TokenMetrics(self.registry)
        self._dropped = self.registry.counter(names.DROPPED)
        self.dropped: dict[str, int] = {}
        """What was lost so far, by what it was."""
        self.num_unread = 0
        """Records that the gateway could not tell, as it said last."""
        self._ended: list[Ended] = []

    def take(self, record: AnyRecord) -> None:
        """A record that came."""
        match record:
            case Step():
                self.open.step(record)
                self.steps.note(record, self.open.request_of)
            case Written():
                self.open.written(record)
            case Began():
                self.open.begin(record)
            case Let():
                self.open.let(record)
            case Ended():
                self._ended.append(record)
            case PolicyInForce():
                self.judge.policies[record.revision] = record
            case _:
                raise TypeError(f"a keeper takes no {type(record).__name__}")

    @property
    def running(self) -> list[Request]:
        """Those that have not ended, the oldest first."""
        over = {ended.request for ended in self._ended}
        return [request for request in self.open.requests.values() if request.began.request not in over]

    def batch(self) -> list[Finished]:
        """Look at what came since the last time; the requests that have ended."""
        now = self._unix_s()
        batch = self.open.batch()
        self._metrics.batch(batch, now)
        self.live.tokens(batch, now)
        over, self._ended = self._ended, []
        finished = []
        for ended in over:
            request = self.open.end(ended)
            if request is None:
                continue
            verdict = self.judge.judge(request)
            self._metrics.ended(request, verdict, now)
            self.live.ended(request, verdict, now)
            one = Finished(request, verdict, self.judge.policy(request))
            finished.append(one)
            self._remember(one)
        return finished

    def count_dropped(self, dropped: dict[str, int]) -> None:
        """What was lost so far on the way to the collector, and what nobody announced."""
        for what, total in {**dropped, "unknown_tokens": self.open.num_unknown}.items():
            more = total - self.dropped.get(what, 0)
            # Nothing yet is 0, not absent: else the first time would be no increase.
            self._dropped.add(more, what)
            self.dropped[what] = total

    def _remember(self, one: Finished) -> None:
        self.recent[one.request.began.answer_id] = one
        self._recent_tokens += one.num_tokens + REQUEST_TOKENS
        while self._recent_tokens > self._most_recent_tokens and len(self.recent) > 1:
            _, oldest = self.recent.popitem(last=False)
            self._recent_tokens -= oldest.num_tokens + REQUEST_TOKENS
