"""What must hold of an executor's state at any time, and what gauges show of it.

Owns the invariants. Reads state, never changes it.
"""

from collections.abc import Iterable
from typing import NamedTuple

from msgspec import Struct

from policies.lifecycle import HOLDS_BLOCKS, State
from policies.scheduling.executor import Executor
from policies.scheduling.lengths.lengths import Coverage


class Snapshot(Struct, frozen=True):
    """Counts over all executors."""

    num_executors: int
    total_blocks: int
    used_blocks: int
    num_waiting: int
    """Sequences without blocks."""
    num_running: int
    """Sequences with blocks."""
    num_decoding: int
    num_preemptions: int
    """Since start, like the next three."""
    num_prefix_hits: int
    """Starts that found tokens in the prefix cache."""
    num_prefix_hit_tokens: int
    """Tokens that they found."""
    num_evictions: int
    """Cached blocks that made room."""
    num_steps_in_flight: int
    step_time_s: float
    """The policy's estimate, of the slowest executor."""
    num_freed_tokens: int = 0
    """Tokens whose KV preempted sequences gave up, since start."""
    num_recomputed_tokens: int = 0
    """Tokens that preempted sequences computed again."""
    coverage: Coverage = Coverage()
    """How often predicted lengths held, since the policy's `prediction` took effect."""


class Totals(NamedTuple):
    """What has happened so often since start."""

    num_preemptions: int = 0
    num_prefix_hits: int = 0
    num_prefix_hit_tokens: int = 0
    num_evictions: int = 0
    num_freed_tokens: int = 0
    num_recomputed_tokens: int = 0

    def with_those_of(self, executor: Executor) -> "Totals":
        """What happened on this executor too."""
        sharing = executor.sharing
        return Totals(
            self.num_preemptions + executor.num_preemptions,
            self.num_prefix_hits + sharing.num_hits,
            self.num_prefix_hit_tokens + sharing.num_hit_tokens,
            self.num_evictions + executor.blocks.num_evictions,
            self.num_freed_tokens + executor.num_freed_tokens,
            self.num_recomputed_tokens + executor.num_recomputed_tokens,
        )


def snapshot(executors: Iterable[Executor], num_unrouted: int, totals: Totals, coverage: Coverage) -> Snapshot:
    """Counts of these executors; the numbers given, of none or of others, are added."""
    everyone = list(executors)
    for executor in everyone:
        totals = totals.with_those_of(executor)
    running = sum(e.num_holders for e in everyone)
    return Snapshot(
        num_executors=len(everyone),
        total_blocks=sum(e.blocks.num_blocks for e in everyone),
        used_blocks=sum(e.blocks.num_blocks - e.blocks.num_free for e in everyone),
        num_waiting=num_unrouted + sum(len(e.routed) for e in everyone) - running,
        num_running=running,
        num_decoding=running - sum(len(e.started) for e in everyone),
        **totals._asdict(),
        num_steps_in_flight=sum(len(e.steps) for e in everyone),
        coverage=coverage,
        step_time_s=max((e.step_time.estimate_s for e in everyone), default=0.0),
    )


def check_executor(executor: Executor) -> None:
    """Raise AssertionError, naming what is wrong, unless every invariant holds."""
    holders = executor.holders()
    columns = executor.columns
    executor.blocks.check([block for s in holders if s.slot is not None for block in columns.table(s.slot).tolist()])
    executor.sharing.check(holders)
    _hold(len(holders) == executor.num_holders, "the holders are not counted right")
    _hold(len(executor.steps) <= executor.max_steps_in_flight, "too many steps in flight")
    for step in executor.steps:
        _hold(step.num_tokens <= step.budget, f"step {step.number} has more tokens than its budget")
        _hold(len(set(step.slots.tolist())) == len(step.slots), f"step {step.number} has two rows of one slot")
    waiting_tokens = 0
    for sequence in executor.routed.values():
        state, slot = sequence.life.state, sequence.slot
        story = f"sequence {sequence.id} ({state.value}): {sequence.life.story}"
        _hold(state is not State.FINISHED, f"finished but still routed: {story}")
        _hold((state is State.WAITING) == (slot is None), f"a slot goes with any state but waiting: {story}")
        _hold((sequence.id in executor.started) == (state is State.PREFILL), f"started prefills are off: {story}")
        is_ready = state is State.WAITING and not sequence.stalled and sequence.awaits is None
        _hold(bool(sequence.ticket) == is_ready, f"ticket is off: {story}")
        if slot is None:
            waiting_tokens += sequence.tokens_to_prefill
            continue
        _hold(executor.columns.sequences[slot] is sequence, f"its slot is another's: {story}")
        if state in HOLDS_BLOCKS:
            capacity = int(columns.capacity[slot])
            _hold(int(columns.position[slot]) <= capacity + columns.ahead, f"tokens without blocks: {story}")
        is_open = state is State.DECODE and not sequence.stalled
        _hold(bool(executor.columns.open[slot]) == is_open, f"may be planned, or may not, wrongly: {story}")
    _hold(waiting_tokens == executor.promised_tokens, "promised tokens are not those of the waiting")


def _hold(condition: bool, sentence: str) -> None:
    if not condition:
        raise AssertionError(sentence)
