"""The sequences an engine holds: their known tokens, block tables and sampling settings, as columns.

Knows no tensors but one: the token each sequence sampled last, which stays on the device as its next input.
"""

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from engine.interface import SequenceStart
from engine.memory import SCRATCH_BLOCKS
from engine.sampling import SamplingRows

Scalar = TypeVar("Scalar", bound=np.generic)

NOBODY = 0
"""The slot of sequences that are gone: no tokens, no blocks but the scratch block."""


class Sequences:
    """A sequence has a slot, a row of every column, from its start until it is released."""

    def __init__(self, max_blocks: int, device: torch.device, capacity: int = 64) -> None:
        self.tables = np.zeros((capacity, max_blocks), np.int32)
        """Block ids as the cache counts them; the scratch block where there is none."""
        self.num_blocks = np.zeros(capacity, np.int64)
        self.num_known = np.zeros(capacity, np.int64)
        """Prompt and kept output tokens known at the start; from there on inputs come from `last_sampled`."""
        self.num_prompt = np.zeros(capacity, np.int64)
        self.temperatures = np.zeros(capacity, np.float32)
        self.top_ps = np.ones(capacity, np.float32)
        self.top_ks = np.zeros(capacity, np.int64)
        self.seeds = np.zeros(capacity, np.int64)
        self.ignore_eos = np.zeros(capacity, np.bool_)
        self.last_sampled = torch.zeros(capacity, dtype=torch.int64, device=device)
        self.tokens: dict[int, NDArray[np.int32]] = {}
        """Known tokens of each slot in use."""
        self._slots: dict[int, int] = {}
        self._free = list(range(capacity - 1, NOBODY, -1))

    def __len__(self) -> int:
        return len(self._slots)

    def start(self, start: SequenceStart) -> None:
        """Take in a sequence with an empty block table; one of the same id is forgotten."""
        self.release([start.sequence])
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._slots[start.sequence] = slot
        self.tokens[slot] = np.frombuffer(start.tokens, np.int32)
        self.num_known[slot] = len(self.tokens[slot])
        self.num_prompt[slot] = start.num_prompt_tokens
        sampling = start.sampling
        self.temperatures[slot] = sampling.temperature
        self.top_ps[slot] = sampling.top_p
        self.top_ks[slot] = sampling.top_k
        self.seeds[slot] = sampling.seed
        self.ignore_eos[slot] = sampling.ignore_eos

    def release(self, sequences: list[int]) -> None:
        """Forget sequences; unknown ones are ignored."""
        for sequence in sequences:
            slot = self._slots.pop(sequence, NOBODY)
            if slot == NOBODY:
                continue
            del self.tokens[slot]
            self.tables[slot, : self.num_blocks[slot]] = 0
            self.num_blocks[slot] = 0
            self._free.append(slot)

    def slots(self, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
        """The slot of each sequence, NOBODY for those that are gone."""
        slots = self._slots
        return np.array([slots.get(sequence, NOBODY) for sequence in sequences.tolist()], np.int64)

    def append_blocks(self, slots: NDArray[np.int64], counts: NDArray[np.int32], blocks: NDArray[np.int32]) -> None:
        """Append to each slot its count of blocks, numbered as the scheduler does."""
        if not len(blocks):
            return
        rows = np.repeat(slots, counts)
        offsets = np.arange(len(blocks)) - np.repeat(np.cumsum(counts) - counts, counts)
        columns = self.num_blocks[rows] + offsets
        held = rows != NOBODY
        self.tables[rows[held], columns[held]] = blocks[held] + SCRATCH_BLOCKS
        known = slots != NOBODY
        self.num_blocks[slots[known]] += counts[known]

    def sampling(self, slots: NDArray[np.int64], positions: NDArray[np.int64]) -> SamplingRows:
        """Settings of rows whose sampled tokens will stand at `positions` of their sequences."""
        return SamplingRows(
            self.temperatures[slots],
            self.top_ps[slots],
            self.top_ks[slots],
            self.seeds[slots],
            positions - self.num_prompt[slots],
        )

    def _grow(self) -> None:
        """Twice as many slots."""
        capacity = len(self.num_blocks)
        self.tables = _doubled(self.tables)
        self.num_blocks = _doubled(self.num_blocks)
        self.num_known = _doubled(self.num_known)
        self.num_prompt = _doubled(self.num_prompt)
        self.temperatures = _doubled(self.temperatures)
        self.top_ps = _doubled(self.top_ps)
        self.top_ks = _doubled(self.top_ks)
        self.seeds = _doubled(self.seeds)
        self.ignore_eos = _doubled(self.ignore_eos)
        self.last_sampled = torch.cat((self.last_sampled, torch.zeros_like(self.last_sampled)))
        self._free.extend(range(2 * capacity - 1, capacity - 1, -1))


def _doubled(column: NDArray[Scalar]) -> NDArray[Scalar]:
    return np.concatenate((column, np.zeros_like(column)))
