"""What a plan is counted as."""

import numpy as np

from policies.commands import NO_BLOCKS, StepPlan
from policies.simulation.step_shape import StepShape, shape_of


def plan(rows: list[tuple[int, int, bool]]) -> StepPlan:
    """Rows of (position, new tokens, samples)."""
    positions, num_tokens, samples = zip(*rows, strict=True)
    return StepPlan(
        sequences=np.arange(len(rows), dtype=np.int64),
        positions=np.array(positions, np.int32),
        num_tokens=np.array(num_tokens, np.int32),
        samples=np.array(samples, np.bool_),
        stages=np.zeros(len(rows), np.int8),
        num_new_blocks=np.zeros(len(rows), np.int32),
        new_blocks=NO_BLOCKS,
        starts=[],
        released=[],
    )


def test_decodes_are_counted_with_the_context_they_read() -> None:
    assert shape_of(plan([(9, 1, True), (19, 1, True)])) == StepShape(0, 2, 30)


def test_chunks_are_counted_with_the_pairs_of_their_attention() -> None:
    # A chunk of 4 behind 10, one of 8 at a prompt's beginning that ends it, and a decode at position 5.
    shape = shape_of(plan([(10, 4, False), (0, 8, True), (5, 1, True)]))
    assert shape == StepShape(12, 1, 6, num_prefills=2, prefill_pairs=4 * (10 + 2) + 8 * 4)
    assert shape.num_tokens == 13


def test_a_last_chunk_of_one_token_is_a_decode_and_one_that_samples_nothing_is_not() -> None:
    assert shape_of(plan([(7, 1, True), (3, 1, False)])) == StepShape(1, 1, 8, num_prefills=1, prefill_pairs=3.5)
