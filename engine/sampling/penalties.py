"""Which tokens a sequence holds, counted on the device, and what its penalties make of that.

With two steps in flight the host does not know the tokens sampled last; so counts live beside the logits, in one row
for each sequence that asked for a penalty, and none for the others. They follow from the tokens a sequence starts
with, so a preempted or restarted one has the same.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.interface import Sampling
from engine.sampling.rows import column
from engine.transfer import on_device

NO_ROW = 0
"""Of sequences without penalties; never written."""
LOGITS_AT_ONCE = 2**22
"""Bounds the memory of what is computed between logits and penalised logits to some 100 MiB."""


class Penalties:
    """Presence and frequency penalties on output tokens, repetition penalties on prompt and output tokens."""

    def __init__(self, vocabulary_size: int, device: torch.device) -> None:
        self._device = device
        self._vocabulary_size = vocabulary_size
        self._in_prompt = torch.zeros(1, vocabulary_size, dtype=torch.bool, device=device)
        self._in_output = torch.zeros(1, vocabulary_size, dtype=torch.int32, device=device)
        """How often."""
        self._weights = np.zeros((1, 3), np.float32)
        """Repetition, frequency and presence penalty of each row."""
        self._free: list[int] = []

    def take(self, sampling: Sampling, prompt: NDArray[np.int32], output: NDArray[np.int32]) -> int:
        """A row for a sequence that has these tokens; NO_ROW if it asks for no penalty."""
        weights = (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        if weights == (1.0, 0.0, 0.0):
            return NO_ROW
        if not self._free:
            self._grow()
        row = self._free.pop()
        self._weights[row] = weights
        in_prompt = np.zeros(self._vocabulary_size, np.bool_)
        in_prompt[prompt] = True
        self._in_prompt[row] = on_device(in_prompt, self._device)
        counts = np.bincount(output, minlength=self._vocabulary_size).astype(np.int32)
        self._in_output[row] = on_device(counts, self._device)
        return row

    def give_back(self, row: int) -> None:
        """The sequence is gone."""
        if row != NO_ROW:
            self._free.append(row)

    def apply(self, logits: Tensor, where: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        """Change the logits, float32 [any, vocabulary], at indices `where`, which belong to these rows of counts."""
        at_once = max(1, LOGITS_AT_ONCE // self._vocabulary_size)
        for start in range(0, len(where), at_once):
            part = slice(start, start + at_once)
            places = on_device(where[part], self._device)
            logits[places] = self._penalised(logits[places], rows[part])

    def _penalised(self, logits: Tensor, rows: NDArray[np.int64]) -> Tensor:
        places = on_device(rows, self._device)
        repetition, frequency, presence = (column(weight, self._device) for weight in self._weights[rows].T.copy())
        counts = self._in_output[places]
        present = counts > 0
        repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
        logits = torch.where(present | self._in_prompt[places], repeated, logits)
        return logits - counts * frequency - present * presence

    def count(self, rows: NDArray[np.int64], tokens: Tensor) -> None:
        """A token, int64 [rows], was sampled for each of these rows."""
        self._in_output[on_device(rows, self._device), tokens] += 1

    def _grow(self) -> None:
        """Twice as many rows, and one at first."""
        size = len(self._weights)
        self._in_prompt = torch.cat((self._in_prompt, torch.zeros_like(self._in_prompt)))
        self._in_output = torch.cat((self._in_output, torch.zeros_like(self._in_output)))
        self._weights = np.concatenate((self._weights, np.zeros_like(self._weights)))
        self._free.extend(range(2 * size - 1, size - 1, -1))
