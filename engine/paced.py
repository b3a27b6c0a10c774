"""A synthetic engine: tokens at a fixed pace, no computation. Torch-free; for benchmarks and tests of the services."""

import time
from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.interface import EngineInfo, EngineSettings, Logprobs, Sampling, Step, StepOutput

NUM_BLOCKS = 2**20
NO_EMBEDDINGS = "the paced engine computes nothing and has no embeddings"
NO_GRAMMARS = "the paced engine samples at random and keeps to no grammar"
GONE = Sampling()
"""Of sequences that ended meanwhile: their tokens mean nothing."""
MULTIPLIERS = np.array((0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9), np.uint64)


class _Launched(NamedTuple):
    output: StepOutput
    due_ns: int


class PacedEngine:
    """Each step takes `paced_step_s` after the one before; a token depends on (seed of its sequence, position) alone.

    No token ends a sequence, so outputs are as long as asked for. Sequences with a grammar fail. Log-probabilities are
    made up: each token has half the probability of the one before, the sampled one the greatest.
    """

    def __init__(self, settings: EngineSettings, vocabulary_size: int, max_sequence_tokens: int) -> None:
        block_tokens = settings.kv_block_tokens or 16
        num_blocks = settings.kv_pool_tokens // block_tokens or NUM_BLOCKS
        self.info = EngineInfo(
            model="paced",
            architecture="paced",
            num_parameters=0,
            dtype="none",
            device="none",
            attention="none",
            num_blocks=num_blocks,
            block_tokens=block_tokens,
            max_sequence_tokens=settings.max_sequence_tokens or max_sequence_tokens,
            vocabulary_size=vocabulary_size,
            max_steps_in_flight=settings.max_steps_in_flight,
            copies_blocks=True,
        )
        self._step_ns = round(settings.paced_step_s * 1e9)
        self._samplings: dict[int, Sampling] = {}
        self._failed: dict[int, str] = {}
        self._launched: deque[_Launched] = deque()
        self._free_ns = 0
        """When the device is done with all it was given."""

    def launch(self, step: Step) -> None:
        """As `Engine.launch`."""
        launched_ns = time.monotonic_ns()
        self.forget(step.released)
        self._samplings.update((start.sequence, start.sampling) for start in step.starts)
        self._failed.update((start.sequence, NO_GRAMMARS) for start in step.starts if start.grammar)
        self._failed.update((start.sequence, NO_EMBEDDINGS) for start in step.starts if start.pooling)
        sequences = step.sequences[step.samples].tolist()
        samplings = [self._samplings.get(sequence, GONE) for sequence in sequences]
        seeds = np.array([sampling.seed for sampling in samplings], np.int64)
        tokens = self._tokens(seeds, (step.positions + step.num_tokens)[step.samples])
        self._free_ns = max(launched_ns, self._free_ns) + self._step_ns
        ended = np.zeros(len(tokens), np.bool_)
        failed = {sequence: self._failed[sequence] for sequence in sequences if sequence in self._failed}
        output = StepOutput(step.step, tokens, ended, launched_ns, 0, failed, self._logprobs(samplings, tokens))
        self._launched.append(_Launched(output, self._free_ns))

    def collect(self) -> StepOutput:
        """As `Engine.collect`: sleeps until the step's deadline, which does not drift with how long callers take."""
        if not self._launched:
            raise RuntimeError("collect: no step was launched that is not collected yet")
        output, due_ns = self._launched.popleft()
        rest_ns = due_ns - time.monotonic_ns()
        if rest_ns > 0:
            time.sleep(rest_ns / 1e9)
        output.computed_ns = time.monotonic_ns()
        return output

    def forget(self, sequences: list[int]) -> None:
        """As `Engine.forget`."""
        for sequence in sequences:
            self._samplings.pop(sequence, None)
            self._failed.pop(sequence, None)

    def _logprobs(self, samplings: list[Sampling], tokens: NDArray[np.int32]) -> Logprobs | None:
        num_top = [sampling.logprobs for sampling in samplings]
        asked = [(token, count) for token, count in zip(tokens.tolist(), num_top, strict=True) if count is not None]
        if not asked:
            return None
        ranks = np.concatenate([np.maximum(np.arange(-1, count), 0) for _, count in asked])
        counts = [count + 1 for _, count in asked]
        likeliest = np.repeat([token for token, _ in asked], counts)
        return Logprobs(
            np.array([0 if count is None else count + 1 for count in num_top], np.int8),
            ((likeliest + ranks) % self.info.vocabulary_size).astype(np.int32),
            (np.log(0.5) * (ranks + 1)).astype(np.float32),
        )

    def _tokens(self, seeds: NDArray[np.int64], positions: NDArray[np.int32]) -> NDArray[np.int32]:
        first, second = MULTIPLIERS
        mixed = (seeds.astype(np.uint64) * first + positions.astype(np.uint64)) * second
        mixed ^= mixed >> np.uint64(31)
        tokens: NDArray[np.uint64] = ((mixed * first) >> np.uint64(33)) % np.uint64(self.info.vocabulary_size)
        return tokens.astype(np.int32)
