"""What the sequence in each slot asks of its tokens: columns for what all have, tables for what few ask for."""

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.interface import Sampling
from engine.sampling.logprobs import RawDistributions
from engine.sampling.penalties import NO_ROW, Penalties
from engine.sampling.rows import SamplingRows
from engine.transfer import on_device

Scalar = TypeVar("Scalar", bound=np.generic)

FORBIDDEN = -1e30
"""The logit of a token that would end a sequence too early: beside any other its probability is 0. Finite, so that a
mask that leaves nothing else still leaves one."""


class SlotSampling:
    """Slots are numbered by whoever holds the sequences; the settings of a free one mean nothing."""

    def __init__(self, capacity: int, vocabulary_size: int, eos_ids: Iterable[int], device: torch.device) -> None:
        self._device = device
        self._eos_ids = np.array(sorted(eos_ids), np.int64)
        self._penalties = Penalties(vocabulary_size, device)
        self._temperatures = np.zeros(capacity, np.float32)
        self._top_ps = np.ones(capacity, np.float32)
        self._top_ks = np.zeros(capacity, np.int64)
        self._min_ps = np.zeros(capacity, np.float32)
        self._seeds = np.zeros(capacity, np.int64)
        self._min_tokens = np.zeros(capacity, np.int64)
        self._num_logprobs = np.zeros(capacity, np.int8)
        """Entries of each output position, the sampled token's own included."""
        self._penalised = np.full(capacity, NO_ROW, np.int64)
        """Rows of `_penalties`."""
        self._ignore_eos = np.zeros(capacity, np.bool_)
        self._stops: dict[int, NDArray[np.int64]] = {}
        """Stop tokens of the sequence's own."""
        self._biases: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}
        """Token ids and what is added to their logits."""

    def start(self, slot: int, sampling: Sampling, tokens: NDArray[np.int32], num_prompt: int) -> None:
        """Take in the settings of a sequence that has these tokens, the first of them its prompt."""
        self._temperatures[slot] = sampling.temperature
        self._top_ps[slot] = sampling.top_p
        self._top_ks[slot] = sampling.top_k
        self._min_ps[slot] = sampling.min_p
        self._seeds[slot] = sampling.seed
        self._min_tokens[slot] = sampling.min_tokens
        self._num_logprobs[slot] = 0 if sampling.logprobs is None else 1 + sampling.logprobs
        self._penalised[slot] = self._penalties.take(sampling, tokens[:num_prompt], tokens[num_prompt:])
        self._ignore_eos[slot] = sampling.ignore_eos
        if sampling.stop_token_ids:
            self._stops[slot] = np.array(sampling.stop_token_ids, np.int64)
        if sampling.logit_bias:
            bias = sampling.logit_bias
            self._biases[slot] = np.array(list(bias), np.int64), np.array(list(bias.values()), np.float32)

    def release(self, slot: int) -> None:
        """Its sequence is gone."""
        self._penalties.give_back(int(self._penalised[slot]))
        self._penalised[slot] = NO_ROW
        self._min_tokens[slot] = self._num_logprobs[slot] = 0
        self._stops.pop(slot, None)
        self._biases.pop(slot, None)

    def rows(self, slots: NDArray[np.int64], output_positions: NDArray[np.int64]) -> SamplingRows:
        """Settings of rows whose sampled tokens will stand at these positions of their outputs."""
        return SamplingRows(
            self._temperatures[slots],
            self._top_ps[slots],
            self._top_ks[slots],
            self._min_ps[slots],
            self._seeds[slots],
            output_positions,
        )

    def distributions(self, logits: Tensor, slots: NDArray[np.int64]) -> RawDistributions | None:
        """Of the rows that ask for log-probabilities; None where no row does."""
        num_entries = self._num_logprobs[slots]
        return RawDistributions(logits, num_entries) if num_entries.any() else None

    def adjusted(self, logits: Tensor, slots: NDArray[np.int64], output_positions: NDArray[np.int64]) -> Tensor:
        """Logits [rows, vocabulary] with biases, penalties and least lengths; float32 where any row has one.

        The logits given may be overwritten.
        """
        biased = [row for row, slot in enumerate(slots.tolist()) if slot in self._biases] if self._biases else []
        penalised = np.flatnonzero(self._penalised[slots])
        short = np.flatnonzero(output_positions < self._min_tokens[slots])
        if not (biased or len(penalised) or len(short)):
            return logits
        logits = logits.float()
        if biased:
            tokens, values = zip(*(self._biases[int(slots[row])] for row in biased), strict=True)
            places = self._places(np.array(biased), tokens)
            logits[places] += on_device(np.concatenate(values), self._device)
        if len(penalised):
            self._penalties.apply(logits, penalised, self._penalised[slots[penalised]])
        if len(short):
            logits[self._places(short, [self._ending(slot) for slot in slots[short].tolist()])] = FORBIDDEN
        return logits

    def sampled(self, slots: NDArray[np.int64], tokens: Tensor) -> None:
        """These tokens, int64 [rows], are now part of the outputs."""
        penalised = np.flatnonzero(self._penalised[slots])
        if len(penalised):
            self._penalties.count(self._penalised[slots[penalised]], tokens[on_device(penalised, self._device)])

    def endings(self, slots: NDArray[np.int64]) -> "Endings":
        """What tells which of these rows' tokens end their sequences, whatever becomes of the slots meanwhile."""
        stops = [(row, self._stops[slot]) for row, slot in enumerate(slots.tolist()) if slot in self._stops]
        return Endings(self._eos_ids, self._ignore_eos[slots], stops)

    def grow(self) -> None:
        """Twice as many slots."""
        self._temperatures = doubled(self._temperatures)
        self._top_ps = doubled(self._top_ps)
        self._top_ks = doubled(self._top_ks)
        self._min_ps = doubled(self._min_ps)
        self._seeds = doubled(self._seeds)
        self._min_tokens = doubled(self._min_tokens)
        self._num_logprobs = doubled(self._num_logprobs)
        self._penalised = doubled(self._penalised)
        self._ignore_eos = doubled(self._ignore_eos)

    def _ending(self, slot: int) -> NDArray[np.int64]:
        """Tokens that would end the slot's sequence."""
        stops = self._stops.get(slot, self._eos_ids[:0])
        return stops if self._ignore_eos[slot] else np.concatenate((self._eos_ids, stops))

    def _places(self, rows: NDArray[np.int64], tokens: Iterable[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
        """Indices of each row's tokens in the logits."""
        tokens = list(tokens)
        rows = np.repeat(rows, [len(each) for each in tokens])
        return on_device(rows, self._device), on_device(np.concatenate(tokens), self._device)


class Endings:
    """The tokens that end the sequences of a step's sampling rows."""

    def __init__(
        self,
        eos_ids: NDArray[np.int64],
        ignore_eos: NDArray[np.bool_],
        stops: list[tuple[int, NDArray[np.int64]]],
    ) -> None:
        self._eos_ids = eos_ids
        self._ignore_eos = ignore_eos
        self._stops = stops
        """Of the few rows that have some."""

    def of(self, tokens: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Whether each row's token ends its sequence."""
        ended: NDArray[np.bool_] = np.isin(tokens, self._eos_ids) & ~self._ignore_eos
        for row, stops in self._stops:
            ended[row] |= bool((stops == tokens[row]).any())
        return ended


def doubled(column: NDArray[Scalar]) -> NDArray[Scalar]:
    """Room for twice as many slots, zeros in the new ones."""
    return np.concatenate((column, np.zeros_like(column)))
