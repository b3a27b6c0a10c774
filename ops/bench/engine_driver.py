"""Drives an engine in this process, without services: batches of equal sequences, greedy, of forced length."""

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from engine.interface import Engine, Sampling, SequenceStart, Step
from ops.bench.device_limits import synchronized

GREEDY = Sampling(temperature=0, ignore_eos=True)


class Timed(NamedTuple):
    """A batch that ran, or began to."""

    prefill_s: float
    decode_s: float
    outputs: NDArray[np.int32]
    """[sequences, steps]."""


class Batch:
    """Sequences of one length; each holds all its blocks from its start, scattered over the pool."""

    def __init__(self, engine: Engine, prompts: NDArray[np.int32], num_outputs: int, in_flight: int = 2) -> None:
        """`prompts` int32 [sequences, tokens]; `in_flight`: steps launched ahead of their results."""
        self._engine = engine
        self._prompts = prompts
        self._device = torch.device(engine.info.device)
        self._in_flight = in_flight
        self._ids = np.arange(len(prompts))
        self._blocks_each = -(-(prompts.shape[1] + num_outputs) // engine.info.block_tokens)
        needed = len(prompts) * self._blocks_each
        if needed > engine.info.num_blocks:
            raise ValueError(f"{len(prompts)} sequences need {needed} blocks; the pool has {engine.info.num_blocks}")
        order = np.random.default_rng(7).permutation(engine.info.num_blocks)[:needed]
        self._blocks = order.astype(np.int32).reshape(len(prompts), self._blocks_each)
        self._launched: deque[int] = deque()
        self._tokens: list[NDArray[np.int32]] = []

    def run(self, num_outputs: int, budget: int) -> Timed:
        """Prefill in steps of at most `budget` tokens, then decode, all sequences together."""
        self._tokens.clear()
        length = self._prompts.shape[1]
        rows = max(1, budget // length)
        began = synchronized(self._device)
        for start in range(0, len(self._ids), rows):
            chosen = self._ids[start : start + rows]
            for position in range(0, length, budget):
                count = min(budget, length - position)
                self._launch(chosen, position, count, samples=position + count == length, starts=position == 0)
        self._drain()
        first = np.concatenate(self._tokens)
        self._tokens.clear()
        prefilled = synchronized(self._device)
        for step in range(num_outputs - 1):
            self._launch(self._ids, length + step, 1, samples=True, starts=False)
        self._drain()
        ended = synchronized(self._device)
        self._engine.forget(self._ids.tolist())
        return Timed(prefilled - began, ended - prefilled, np.stack((first, *self._tokens), 1))

    def likeliest(self, chunk: int = 1) -> NDArray[np.int32]:
        """The token that the model would choose after each of the given ones, [sequences, tokens - chunk + 1].

        The first `chunk` tokens are read at once, the others one at a time.
        """
        self._tokens.clear()
        self._launch(self._ids, 0, chunk, samples=True, starts=True)
        for position in range(chunk, self._prompts.shape[1]):
            self._launch(self._ids, position, 1, samples=True, starts=False)
        self._drain()
        self._engine.forget(self._ids.tolist())
        return np.stack(self._tokens, 1)

    def _launch(
        self, chosen: NDArray[np.int64], position: int, num_tokens: int, *, samples: bool, starts: bool
    ) -> None:
        count = len(chosen)
        self._engine.launch(
            Step(
                step=0,
                sequences=chosen.astype(np.int64),
                positions=np.full(count, position, np.int32),
                num_tokens=np.full(count, num_tokens, np.int32),
                samples=np.full(count, samples),
                num_new_blocks=np.full(count, self._blocks_each if starts else 0, np.int32),
                new_blocks=self._blocks[chosen].reshape(-1) if starts else np.zeros(0, np.int32),
                starts=self._starts(chosen) if starts else [],
                released=[],
            )
        )
        self._launched.append(count)
        while len(self._launched) >= self._in_flight:
            self._collect()

    def _starts(self, chosen: NDArray[np.int64]) -> list[SequenceStart]:
        length = self._prompts.shape[1]
        return [SequenceStart(int(i), self._prompts[i].tobytes(), length, GREEDY) for i in chosen]

    def _collect(self) -> None:
        self._launched.popleft()
        tokens = self._engine.collect().tokens
        if len(tokens):
            self._tokens.append(tokens)

    def _drain(self) -> None:
        while self._launched:
            self._collect()


def random_prompts(num_sequences: int, num_tokens: int, vocabulary_size: int, seed: int) -> NDArray[np.int32]:
    """int32 [sequences, tokens]."""
    return np.random.default_rng(seed).integers(0, vocabulary_size, (num_sequences, num_tokens)).astype(np.int32)


def boundary_gaps(activities: Sequence[tuple[str, float, float]]) -> tuple[list[float], list[float]]:
    """How long a device did nothing after each step, and how long each step took, that gap included.

    `activities`: (name, begin, end) of all that the device did, in any order and unit. A step's last one copies its
    tokens to the host.
    """
    ordered = sorted(activities, key=lambda activity: activity[1])
    ends = [index for index, (name, *_) in enumerate(ordered) if "DtoH" in name]
    gaps, steps = [], []
    for last, following in pairwise(ends):
        gaps.append(max(0.0, ordered[last + 1][1] - ordered[last][2]))
        steps.append(ordered[following][2] - ordered[last][2])
    return gaps, steps
