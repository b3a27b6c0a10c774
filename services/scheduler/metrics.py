"""What the scheduler counts: steps, the blocks of the pools, who waits and who lost blocks.

A few additions a step; levels are read when somebody asks.
"""

from policies.scheduling.checking import Snapshot
from policies.scheduling.rules import UNLIMITED
from services.scheduler.executors import StepTokens
from services.telemetry import names
from services.telemetry.metrics import SHARES, Family, Registry
from services.wire_parts import Levels

PREFILL, DECODE = "prefill", "decode"


class SchedulerMetrics:
    """One scheduler's."""

    def __init__(self) -> None:
        registry = self._registry = Registry()
        self._duration = registry.histogram(names.STEP_DURATION)
        self._tokens = registry.counter(names.STEP_TOKENS)
        self._budget_use = registry.histogram(names.STEP_BUDGET_USE, SHARES)
        self._preemptions = registry.counter(names.PREEMPTIONS)
        self._prefix_hits = registry.counter(names.PREFIX_HIT_TOKENS)
        self._recomputed = registry.counter(names.RECOMPUTED_TOKENS)
        self._used_blocks = registry.gauge(names.KV_USED_BLOCKS)
        self._blocks = registry.gauge(names.KV_BLOCKS)
        self._sequences = registry.gauge(names.SEQUENCES)
        self._executors = registry.gauge(names.EXECUTORS_UP)
        self._abandoned = registry.counter(names.EXECUTORS_ABANDONED)
        self._abandoned.add(0)  # else its first time would be no increase
        self._coverage = registry.gauge(names.PREDICTION_COVERAGE)
        self._revision = registry.gauge(names.REVISION)

    def step_ended(self, returned: StepTokens, token_budget: int) -> None:
        """A step came back."""
        plan = returned.plan
        self._duration.observe(returned.step_time_s)
        self._tokens.add(plan.num_prefill_tokens, PREFILL)
        self._tokens.add(plan.num_decode_tokens, DECODE)
        if token_budget < UNLIMITED:
            self._budget_use.observe((plan.num_prefill_tokens + plan.num_decode_tokens) / token_budget)

    def abandoned(self) -> None:
        """An executor was given up."""
        self._abandoned.add(1)

    def levels(self, seen: Snapshot, block_tokens: int) -> Levels:
        """What gateways are told."""
        num_steps, step_s = self._duration.totals()
        return Levels(
            blocks=seen.total_blocks,
            used_blocks=seen.used_blocks,
            block_tokens=block_tokens,
            num_waiting=seen.num_waiting,
            num_prefilling=seen.num_running - seen.num_decoding,
            num_decoding=seen.num_decoding,
            num_preemptions=seen.num_preemptions,
            num_steps=num_steps,
            step_s=step_s,
            prefill_tokens=round(self._tokens.value(PREFILL)),
            decode_tokens=round(self._tokens.value(DECODE)),
        )

    def families(self, seen: Snapshot, revision: int) -> list[Family]:
        """All of it, with the levels as they are now."""
        self._preemptions.raise_to(seen.num_preemptions, "kv")
        self._prefix_hits.raise_to(seen.num_prefix_hit_tokens)
        self._recomputed.raise_to(seen.num_recomputed_tokens)
        self._used_blocks.set(seen.used_blocks)
        self._blocks.set(seen.total_blocks)
        self._sequences.set(seen.num_waiting, "waiting")
        self._sequences.set(seen.num_running - seen.num_decoding, PREFILL)
        self._sequences.set(seen.num_decoding, DECODE)
        self._executors.set(seen.num_executors)
        if seen.coverage.num_observed:
            self._coverage.set(seen.coverage.num_above_lower / seen.coverage.num_observed, "lower")
            self._coverage.set(seen.coverage.num_below_upper / seen.coverage.num_observed, "upper")
        self._revision.set(revision)
        return self._registry.families()
