"""The fairness theorems, watched while serving: how far apart tenants are, against how far they may be.

Follows an admission core from outside: told of every event after it was decided, it looks at counters about once a
second and answers when asked. It changes nothing, so a run with it decides as one without. Knows what the core shows;
does not know who asks.

Sources: Sheng et al., OSDI 2024 (Lemma 4.3: gap <= U; Theorem 4.4: pairs within 2 U; Theorem 4.11: the wait of a tenant
that had nothing here is at most 2 (n - 1) U / a), with the U of the fairness specification, 4.1.
"""

from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from policies.admission.checking import waits_and_fits
from policies.admission.core import AdmissionCore
from policies.admission.evenness import jain
from policies.commands import Command, Settle

SAMPLE_S = 1.0
NUM_AGES = 13
"""Samples are kept that are about 1, 2, 4, ... 4096 s old: pairs are compared over intervals of these lengths."""


class TenantFairness(Struct, frozen=True):
    """One tenant, as it stands."""

    tenant: str
    weight: float
    counter: float
    """Charged service over weight, lifts included, in cost units."""
    num_waiting: int
    num_in_flight: int
    backlogged_s: float
    """Seconds in which it had something waiting, since the start."""
    prompt_tokens: int
    """Of what has been let in since the start."""
    cached_tokens: int
    """Of these, found in the prefix cache."""
    output_tokens: int
    num_requests: int
    """That have ended."""
    wait_bound_s: float | None
    """Theorem 4.11: a next request of this tenant, with nothing of it here, is let in within this. None: nothing is
    known yet of how fast service is.
    """


class WindowUse(Struct, frozen=True):
    """The in-flight window, and what it means for the bound."""

    limit_tokens: int
    """2^62: open."""
    reserved_tokens: int
    num_requests: int
    peak_tokens: int
    """`M` as realised: the largest sum of sizes in flight so far."""
    auto: str
    """What `window_tokens: auto` is doing; empty: the policy names the window."""
    pool_tokens: int | None
    """What `auto` narrows from."""
    kept: float | None
    """Throughput over that of the pool-sized window, as last compared by `auto`."""
    bound: float
    """U of a window of this size, in cost units: what counters stay within once they have come as near."""
    bound_tokens: int
    """The same in tokens: what is in flight at most."""
    bound_s: float | None
    """The same in seconds of service, 2 U / a for each other tenant that asks."""


class FairnessReport(Struct, frozen=True):
    """Everything at one moment; figures in cost units unless their names say otherwise."""

    policy: str
    kind: str
    measured_s: float
    """Since the start."""
    gap: float
    """Between the counters of backlogged tenants."""
    bound: float
    """U over the smallest weight, with the sizes really in flight so far."""
    gap_ratio: float
    """At most 1 while the kind has always been `vtc` and every request declared its size."""
    max_gap_ratio: float
    """The largest at any look since the start."""
    pair_difference: float
    """The largest difference in service over weight between two tenants, both backlogged throughout, at any look."""
    pair_bound: float
    """2 U: what `pair_difference` may be."""
    jain: float
    """Jain's index of the counters of backlogged tenants."""
    num_backlogged: int
    num_asking: int
    """Tenants with something queued or in flight."""
    served_per_s: float
    """`a`: cost served per second while something was in flight."""
    idle_s: float
    """Seconds in which the next in order fitted and was not let in: must be 0."""
    num_lifts: int
    lifted: float
    """By how much in all: service that was not asked for and is not owed."""
    num_replicas: int
    """Of admission, that share counters; `bound` is of all together."""
    staleness: float
    """In `bound`: what replicas charge without knowing of each other, 2 D for each other one (F12)."""
    window: WindowUse
    tenants: tuple[TenantFairness, ...]
    """By name."""


class _Tally:
    """What a tenant has had since the start."""

    __slots__ = ("backlogged_s", "cached_tokens", "num_requests", "output_tokens", "prompt_tokens", "weight")

    def __init__(self) -> None:
        self.weight = 1.0
        self.prompt_tokens = self.cached_tokens = self.output_tokens = self.num_requests = 0
        self.backlogged_s = 0.0


_Sample = dict[str, tuple[int, float]]
"""Backlogged tenants: (what tells this stay in the backlog from another, counter)."""


_NOTHING = _Tally()
"""Of a tenant that had nothing; never changed."""


class Figures(Struct, frozen=True):
    """A report without its rows, and what they are made of."""

    report: FairnessReport
    in_flight: dict[str, _Tally]


class Meter:
    """Follows one core; `look` after every event, `report` when somebody asks."""

    def __init__(self, core: AdmissionCore) -> None:
        self._core = core
        self._tallies: dict[str, _Tally] = {}
        self._began_s: float | None = None
        self._accounted_s = 0.0
        self._sampled_s = 0.0
        self._num_samples = 0
        self._samples: list[_Sample] = [{} for _ in range(NUM_AGES)]
        self._max_gap_ratio = 0.0
        self._pair_difference = 0.0
        self._idle_s = 0.0

    def look(self, now: float, event: Any, commands: list[Command]) -> None:
        """An event was decided at `now`."""
        del event
        if self._began_s is None:
            self._began_s = self._accounted_s = self._sampled_s = now
        for command in commands:
            if type(command) is Settle:
                tally = self._tally(command.tenant)
                tally.num_requests += 1
                tally.prompt_tokens += command.prompt_tokens
                tally.cached_tokens += command.cached_tokens
                tally.output_tokens += command.output_tokens
        if now - self._sampled_s >= SAMPLE_S:
            self._account(now)

    def report(self, now: float, tenant: str = "") -> FairnessReport:
        """How things stand; with a tenant, its own row alone.

        Raises:
            RuntimeError: the core has no policy yet.
        """
        return self.with_rows(self.figures(now), tenant)

    def with_rows(self, figures: "Figures", tenant: str = "") -> FairnessReport:
        """These figures with the rows of all tenants, O(tenants known), or of one, O(1)."""
        nodes, num_asking = self._core.queue.accounts, figures.report.num_asking
        wait_bounds_s = {
            is_here: self._wait_s(num_asking - 1 + (not is_here), figures.report.bound) for is_here in (True, False)
        }
        rows = []
        for name in [tenant] if tenant else sorted({*nodes, *self._tallies}):
            node, tally = nodes.get(name), self._tallies.get(name, _NOTHING)
            flying = figures.in_flight.get(name, _NOTHING)
            rows.append(
                TenantFairness(
                    tenant=name,
                    weight=tally.weight if node is None else node.weight,
                    counter=0.0 if node is None else node.counter,
                    num_waiting=0 if node is None else node.num_waiting,
                    num_in_flight=0 if node is None else node.num_in_flight,
                    backlogged_s=tally.backlogged_s,
                    prompt_tokens=tally.prompt_tokens + flying.prompt_tokens,
                    cached_tokens=tally.cached_tokens + flying.cached_tokens,
                    output_tokens=tally.output_tokens + flying.output_tokens,
                    num_requests=tally.num_requests,
                    wait_bound_s=wait_bounds_s[node is not None and not node.is_idle],
                )
            )
        return replace(figures.report, tenants=tuple(rows))

    def figures(self, now: float) -> "Figures":
        """What a report says of all together: O(backlogged tenants and requests in flight).

        Raises:
            RuntimeError: the core has no policy yet.
        """
        self._account(now)
        core, in_flight = self._core, self._in_flight()
        report = FairnessReport(
            policy=core.rules.name,
            kind=core.rules.fairness.kind,
            measured_s=now - (now if self._began_s is None else self._began_s),
            gap=core.gap,
            bound=core.bound,
            gap_ratio=core.gap_ratio,
            max_gap_ratio=self._max_gap_ratio,
            pair_difference=self._pair_difference,
            pair_bound=2 * core.bound,
            jain=jain(node.counter for node in core.queue.backlogged()),
            num_backlogged=core.queue.num_backlogged,
            num_asking=len({*in_flight, *(node.name for node in core.queue.backlogged())}),
            served_per_s=core.rate.per_s,
            idle_s=self._idle_s,
            num_lifts=core.queue.num_lifts,
            lifted=core.queue.lifted,
            num_replicas=core.queue.num_replicas,
            staleness=core.queue.staleness,
            window=self._window(),
            tenants=(),
        )
        return Figures(report, in_flight)

    def _tally(self, tenant: str) -> _Tally:
        tally = self._tallies.get(tenant)
        if tally is None:
            tally = self._tallies[tenant] = _Tally()
        return tally

    def _in_flight(self) -> dict[str, _Tally]:
        found: dict[str, _Tally] = {}
        for charge in self._core.ledger.in_flight.values():
            tally = found.setdefault(charge.tenant, _Tally())
            tally.prompt_tokens += charge.prompt_tokens
            tally.cached_tokens += charge.cached_tokens
            tally.output_tokens += charge.output_tokens
        return found

    def _wait_s(self, num_others: int, bound: float) -> float | None:
        served_per_s = self._core.rate.per_s
        return 2 * max(0, num_others) * bound / served_per_s if served_per_s else None

    def _window(self) -> WindowUse:
        core, window, auto = self._core, self._core.window, self._core.auto_window
        bound_tokens = min(window.limit_tokens, window.peak_tokens)
        bound = core.queue.together(core.unit_bound.value(bound_tokens) / core.queue.smallest_weight)
        return WindowUse(
            limit_tokens=window.limit_tokens,
            reserved_tokens=window.reserved_tokens,
            num_requests=window.num_requests,
            peak_tokens=window.peak_tokens,
            auto="" if auto is None else auto.phase,
            pool_tokens=None if auto is None else auto.pool_tokens,
            kept=None if auto is None else auto.kept,
            bound=bound,
            bound_tokens=bound_tokens,
            bound_s=self._wait_s(1, bound),
        )

    # --- about once a second, and whenever somebody asks ----------------------------------------------------------

    def _account(self, now: float) -> None:
        """O(backlogged tenants)."""
        core, elapsed_s = self._core, now - self._accounted_s
        self._accounted_s = now
        sample: _Sample = {}
        for node in core.queue.backlogged():
            sample[node.name] = (node.joined, node.counter)
            tally = self._tally(node.name)
            tally.weight = node.weight
            tally.backlogged_s += elapsed_s
        if sample and waits_and_fits(core) is not None:
            self._idle_s += elapsed_s
        self._max_gap_ratio = max(self._max_gap_ratio, core.gap_ratio)
        if len(sample) > 1:
            for earlier in self._samples:
                self._pair_difference = max(self._pair_difference, _spread(earlier, sample))
        if now - self._sampled_s < SAMPLE_S:
            return  # asked in between: the ages of samples do not depend on who asks
        self._sampled_s = now
        self._num_samples += 1
        for age in range(NUM_AGES):
            if self._num_samples % 2**age == 0:
                self._samples[age] = sample


def _spread(earlier: _Sample, now: _Sample) -> float:
    """Largest difference in what counters gained between two samples, of tenants backlogged all the time between."""
    gained = []
    for name, (joined, counter) in earlier.items():
        current = now.get(name)
        if current is not None and current[0] == joined:
            gained.append(current[1] - counter)
    return max(gained) - min(gained) if gained else 0.0
