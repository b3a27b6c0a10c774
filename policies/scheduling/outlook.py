"""What an executor's sequences are expected to come to: whether one more fits, and whom to spare.

Owns the reading of lengths into steps and blocks. Decides nothing: stages.py asks. The arithmetic is in future.py.
"""

import numpy as np

from policies.lifecycle import State
from policies.scheduling.executor import Executor
from policies.scheduling.future import Future
from policies.scheduling.rules import UNLIMITED
from policies.scheduling.sharing import Hit
from policies.scheduling.state import Sequence


class Outlook:
    """The blocks that all who run, and those who start in this plan, will hold to their predicted ends."""

    def __init__(self, executor: Executor, share: float) -> None:
        """`share`: of the pool that they may come to."""
        self._executor = executor
        self._limit = int(share * executor.blocks.num_blocks)
        columns = executor.columns
        slots = columns.all_open()
        left = np.maximum(columns.estimates().take(slots) - columns.produced().take(slots), 1)
        started = list(executor.started.values())
        tokens = np.concatenate(
            (
                columns.position.take(slots).astype(np.int64) + 1 + columns.ahead,
                np.array([s.tokens_to_prefill + columns.ahead for s in started], np.int64),
            )
        )
        steps = np.concatenate(
            (
                np.ceil(left / executor.decode_share).astype(np.int64),
                np.array([_steps(executor, s, s.prompt_left) for s in started], np.int64),
            )
        )
        shared = columns.shared.take(np.concatenate((slots, np.array([s.slot for s in started], np.intp))))
        blocks = executor.blocks
        ending = sum(len(columns.table(slot)) for step in executor.steps for slot in step.ending)
        self._future = Future(
            tokens,
            steps,
            block_tokens=blocks.block_tokens,
            shared=shared.astype(np.int64),
            used=blocks.num_blocks - blocks.num_free - ending,
        )

    def admits(self, sequence: Sequence, hit: Hit) -> bool:
        """Whether a waiting sequence would fit."""
        return self._future.admits(*self._member(sequence, hit), self._limit, shared=self._shared(hit))

    def add(self, sequence: Sequence, hit: Hit) -> None:
        """It starts."""
        self._future.add(*self._member(sequence, hit), shared=self._shared(hit))

    def _member(self, sequence: Sequence, hit: Hit) -> tuple[int, int]:
        executor = self._executor
        steps = _steps(executor, sequence, sequence.tokens_to_prefill - hit.num_tokens)
        return sequence.tokens_to_prefill + executor.columns.ahead, steps

    def _shared(self, hit: Hit) -> int:
        return len(hit.blocks) - self._executor.blocks.num_idle(hit.blocks)


def _steps(executor: Executor, sequence: Sequence, prompt_left: int) -> int:
    """Steps that a prefill takes and its output after it."""
    budget = executor.rules.token_budget
    chunks = 1 if budget == UNLIMITED else -(-prompt_left // budget)
    decodes = max(sequence.estimate - sequence.kept_tokens, 1) + (not executor.samples_first)
    return chunks - 1 + int(np.ceil(decodes / executor.decode_share))


def spared(executor: Executor) -> dict[int, None]:
    """Slots of those who lose their blocks only if nobody else is left, the oldest first: the oldest of all, and the
    protected, as long as they do not come to more than their share of the pool. Nobody under a policy without guard.
    """
    guard = executor.rules.guard
    if guard is None:
        return {}
    holders = sorted(executor.holders(), key=lambda s: (s.arrived_s, s.number))
    slots: dict[int, None] = {}
    blocks, limit = 0, guard.max_share * executor.blocks.num_blocks
    for age, sequence in enumerate(holders):
        if sequence.protected or not age:
            blocks += executor.blocks.blocks_of(sequence.prompt_tokens + sequence.estimate)
            if blocks > limit and age:
                break
            slots[sequence.slot or 0] = None
    return slots


def raise_estimates(executor: Executor) -> None:
    """Let everybody who decodes be expected to come at least to what there is of it."""
    estimates = executor.columns.estimates()
    for sequence in executor.holders():
        if sequence.life.state is State.DECODE and sequence.slot is not None:
            sequence.estimate = min(int(estimates[sequence.slot]), sequence.max_output_tokens)


def survivors(executor: Executor) -> list[Sequence]:
    """Who has outlived what it was expected to come to, and is to wait as what it is expected to come to now."""
    lengths, columns = executor.rules.lengths, executor.columns
    if lengths is None or not lengths.refinement.preempts or not executor.waiting:
        return []
    slots = columns.all_open()
    outlived = slots[columns.estimates().take(slots) > columns.estimate.take(slots)]
    return [s for slot in outlived.tolist() if (s := columns.sequences[slot]) is not None]
