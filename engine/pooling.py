"""Embeddings: one vector of a whole prompt, from the hidden states of its prefill.

Owns what was gathered of each sequence that asks; knows neither blocks nor texts. The vectors have length 1, as those
of OpenAI have, so that a dot product is a cosine.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from engine.interface import POOLINGS, SequenceStart, Step


class Pooled(NamedTuple):
    """Of the sequences whose prompt ended in a step."""

    vectors: dict[int, Tensor]
    """float32 [hidden]."""
    failed: dict[int, str]
    """Why there is none."""


NONE = Pooled({}, {})


class _Gathered:
    """Of one sequence."""

    __slots__ = ("num_prompt", "num_seen", "pooling", "total")

    def __init__(self, pooling: str, num_prompt: int) -> None:
        self.pooling = pooling
        self.num_prompt = num_prompt
        self.num_seen = 0
        self.total: Tensor | None = None
        """Sum of the hidden states so far, float64 [1, hidden]."""


class Pools:
    """All sequences whose prompt becomes a vector. Costs nothing while there are none.

    `mean` needs every token of the prompt, in order and computed: none may come from another sequence's blocks.
    `last` needs the last one.
    """

    def __init__(self) -> None:
        self._by_sequence: dict[int, _Gathered] = {}

    def start(self, start: SequenceStart) -> None:
        """Begin to gather, from the first token on; nothing to do for a sequence that wants tokens only."""
        self._by_sequence.pop(start.sequence, None)
        if start.pooling:
            self._by_sequence[start.sequence] = _Gathered(start.pooling, start.num_prompt_tokens)

    def release(self, sequences: list[int]) -> None:
        """Forget sequences; unknown ones are ignored."""
        if self._by_sequence:
            for sequence in sequences:
                self._by_sequence.pop(sequence, None)

    def gather(self, step: Step, last_token_of_row: NDArray[np.int64], final_states: Callable[[], Tensor]) -> Pooled:
        """Take in a step. `final_states` gives its hidden states after the final norm, [tokens, hidden]; asked for only
        where somebody waits for them. `last_token_of_row`: where in them each row of the step ends.
        """
        if not self._by_sequence:
            return NONE
        vectors: dict[int, Tensor] = {}
        failed: dict[int, str] = {}
        states = final_states()
        for row, sequence in enumerate(step.sequences.tolist()):
            gathered = self._by_sequence.get(sequence)
            if gathered is None:
                continue
            end = int(last_token_of_row[row]) + 1
            own = states[end - int(step.num_tokens[row]) : end]
            if gathered.pooling == "mean":
                self._add(gathered, int(step.positions[row]), own)
            if not step.samples[row]:
                continue
            if gathered.pooling not in POOLINGS:
                failed[sequence] = f"pooling {gathered.pooling} is not known here; known are {', '.join(POOLINGS)}"
            elif gathered.pooling == "last":
                vectors[sequence] = _direction(own[-1].double())
            elif gathered.total is None or gathered.num_seen != gathered.num_prompt:
                seen = f"only {gathered.num_seen} of the prompt's {gathered.num_prompt} tokens"
                failed[sequence] = f"{seen} were computed for its mean"
            else:
                vectors[sequence] = _direction(gathered.total[0])
        return Pooled(vectors, failed)

    def _add(self, gathered: _Gathered, position: int, own: Tensor) -> None:
        if position != gathered.num_seen:
            return
        # A running sum goes from token to token, so that on a CPU the chunks it came in make no difference to the bits.
        parts = own.double() if gathered.total is None else torch.cat((gathered.total, own.double()))
        gathered.total = parts.cumsum(0)[-1:]
        gathered.num_seen += len(own)


def _direction(vector: Tensor) -> Tensor:
    """Of length 1; the mean and the sum have the same."""
    return functional.normalize(vector, dim=0).float()
