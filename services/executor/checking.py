"""Whether a step can be computed at all: what an engine believes, and would otherwise read beyond its memory for.

Owns the bounds of a step against the engine that is to run it. Knows no sequence's history.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from engine.interface import POOLINGS, EngineInfo, SequenceStart, Step

INT32_BYTES = 4


def problem(step: Step, info: EngineInfo) -> str:
    """Why the step is none for this engine, in words; empty: it is one."""
    ends = step.positions.astype(np.int64) + step.num_tokens
    if len(step.positions) and (step.positions.min() < 0 or step.num_tokens.min() < 1):
        return "a row begins before 0 or has no tokens"
    if len(ends) and ends.max() > info.max_sequence_tokens:
        return f"a row ends at {ends.max()}; sequences have at most {info.max_sequence_tokens} tokens"
    if len(set(step.sequences.tolist())) < len(step.sequences):
        return "a sequence has two rows"
    if len(step.num_new_blocks) and step.num_new_blocks.min() < 0:
        return "a row has less than no new blocks"
    if step.num_new_blocks.sum(dtype=np.int64) != len(step.new_blocks):
        return (
            f"{step.num_new_blocks.sum(dtype=np.int64)} new blocks are announced and {len(step.new_blocks)} are there"
        )
    if not all(_within(blocks, info.num_blocks) for blocks in (step.new_blocks, step.copied, step.copies)):
        return f"a block is not one of the {info.num_blocks}"
    return next((why for why in (_start_problem(start, info) for start in step.starts) if why), "")


def _start_problem(start: SequenceStart, info: EngineInfo) -> str:
    tokens = np.frombuffer(start.tokens, np.int32)
    if len(tokens) > info.max_sequence_tokens:
        return f"a sequence begins with {len(tokens)} tokens; it may have {info.max_sequence_tokens}"
    if not _within(tokens, info.vocabulary_size) or not _named(start, info.vocabulary_size):
        return f"a token is not one of the {info.vocabulary_size}"
    if start.pooling and start.pooling not in POOLINGS:
        return f"there is no pooling `{start.pooling}`"
    return ""


def _within(numbers: NDArray[np.int32], end: int) -> bool:
    return not len(numbers) or bool(0 <= numbers.min() <= numbers.max() < end)


def _named(start: SequenceStart, vocabulary_size: int) -> bool:
    named: Iterable[int] = (*start.sampling.logit_bias, *start.sampling.stop_token_ids)
    return all(token < vocabulary_size for token in named)
