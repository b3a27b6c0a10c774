"""The sequences an engine holds: their known tokens and block tables, as columns, and what they ask of their tokens.

Knows no tensors but one: the token each sequence sampled last, which stays on the device as its next input.
"""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from engine.interface import SequenceStart
from engine.memory import SCRATCH_BLOCKS
from engine.sampling.slots import SlotSampling, doubled

NOBODY = 0
"""The slot of sequences that are gone: no tokens, no blocks but the scratch block."""


class Sequences:
    """A sequence has a slot, a row of every column, from its start until it is released."""

    def __init__(
        self, max_blocks: int, vocabulary_size: int, eos_ids: Iterable[int], device: torch.device, capacity: int = 64
    ) -> None:
        self.tables = np.zeros((capacity, max_blocks), np.int32)
        """Block ids as the cache counts them; the scratch block where there is none."""
        self.num_blocks = np.zeros(capacity, np.int64)
        self.num_known = np.zeros(capacity, np.int64)
        """Prompt and kept output tokens known at the start; from there on inputs come from `last_sampled`."""
        self.num_prompt = np.zeros(capacity, np.int64)
        self.sampling = SlotSampling(capacity, vocabulary_size, eos_ids, device)
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
        self.sampling.start(slot, start.sampling, self.tokens[slot], start.num_prompt_tokens)

    def release(self, sequences: list[int]) -> None:
        """Forget sequences; unknown ones are ignored."""
        for sequence in sequences:
            slot = self._slots.pop(sequence, NOBODY)
            if slot == NOBODY:
                continue
            del self.tokens[slot]
            self.sampling.release(slot)
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

    def _grow(self) -> None:
        """Twice as many slots."""
        capacity = len(self.num_blocks)
        self.tables = doubled(self.tables)
        self.num_blocks = doubled(self.num_blocks)
        self.num_known = doubled(self.num_known)
        self.num_prompt = doubled(self.num_prompt)
        self.sampling.grow()
        self.last_sampled = torch.cat((self.last_sampled, torch.zeros_like(self.last_sampled)))
        self._free.extend(range(2 * capacity - 1, capacity - 1, -1))
