"""Runs steps: a flat batch of all rows through the decoder, then a token for each row that samples.

Owns the sequences and the KV memory; knows neither tenants nor deadlines, and takes the scheduler's word for which
block belongs to whom.
"""

import time
from collections import deque
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.attention.interface import Attention, Rows
from engine.grammar.constraints import Constraints
from engine.graphs import DecodeGraphs
from engine.interface import EngineError, EngineInfo, Step, StepOutput
from engine.kv_cache import KvCache
from engine.models.decoder import Decoder, Inputs
from engine.pooling import NONE, Pooled, Pools
from engine.sampling.draw import sample
from engine.sampling.logprobs import flat
from engine.sampling.slots import Endings
from engine.sequences import NOBODY, Sequences
from engine.transfer import on_device, to_device


class TorchEngine:
    """The engine of `engine.interface`, on a CPU or one CUDA device.

    A step may hold rows of sequences that ended meanwhile: they compute into the scratch block, and their tokens mean
    nothing.
    """

    def __init__(
        self,
        info: EngineInfo,
        model: Decoder,
        cache: KvCache,
        attention: Attention,
        *,
        eos_ids: frozenset[int],
        constraints: Constraints,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self.info = info
        self._model = model
        self._cache = cache
        self._attention = attention
        self._constraints = constraints
        self._graphs = graphs
        self._pools = Pools()
        self._device = cache.keys[0].device
        max_blocks = -(-info.max_sequence_tokens // info.block_tokens) + 1
        self._sequences = Sequences(max_blocks, info.vocabulary_size, eos_ids, self._device)
        self._launched: deque[_Launched] = deque()

    @torch.inference_mode()
    def launch(self, step: Step) -> None:
        """As `Engine.launch`.

        Raises:
            EngineError: a row reaches beyond its sequence's known tokens or blocks.
        """
        launched_ns = time.monotonic_ns()
        sequences = self._sequences
        self.forget(step.released)
        for start in step.starts:
            sequences.start(start)
            self._constraints.start(start)
            self._pools.start(start)
        slots = sequences.slots(step.sequences)
        sequences.append_blocks(slots, step.num_new_blocks, step.new_blocks)
        num_padding = self._num_padding(step)
        rows = _arrange(step, slots, num_padding or 0)
        self._check(rows)
        if len(step.copies):
            self._cache.copy(step.copied, step.copies)
        if not len(slots):
            self._launched.append(_Launched(step.step, launched_ns, _nothing(sequences.sampling.endings(slots)), NONE))
            return
        samples = np.flatnonzero(step.samples)
        inputs = self._inputs(rows, rows.last_token_of_row[samples])
        flat_batch = inputs.tokens, inputs.positions, inputs.slots
        if self._graphs is None or num_padding is None:
            plan = self._attention.plan(self._attention_rows(rows))
            hidden = self._model.hidden(*flat_batch, self._cache, plan)
        else:
            hidden = self._graphs.decode(*flat_batch, self._attention_rows(rows))
        pooled = self._pools.gather(step, rows.last_token_of_row, lambda: self._model.norm(hidden))
        logits = self._model.logits(hidden, inputs.sampled)
        positions = (step.positions + step.num_tokens)[samples]
        sampled = self._sample(logits, step.sequences[samples], slots[samples], positions)
        self._launched.append(_Launched(step.step, launched_ns, sampled, pooled))

    def collect(self) -> StepOutput:
        """As `Engine.collect`."""
        if not self._launched:
            raise RuntimeError("collect: no step was launched that is not collected yet")
        launched = self._launched.popleft()
        sampled = launched.sampled
        tokens = sampled.copy.read()
        num_entries = sampled.num_entries
        return StepOutput(
            step=launched.step,
            tokens=tokens,
            ended=sampled.endings.of(tokens),
            launched_ns=launched.launched_ns,
            computed_ns=sampled.copy.computed_ns or time.monotonic_ns(),
            failed=sampled.failed | launched.pooled.failed,
            logprobs=None if num_entries is None else flat(num_entries, *sampled.copy.entries),
            vectors={sequence: vector.cpu().numpy() for sequence, vector in launched.pooled.vectors.items()},
        )

    def forget(self, sequences: list[int]) -> None:
        """As `Engine.forget`."""
        self._sequences.release(sequences)
        self._constraints.release(sequences)
        self._pools.release(sequences)

    def _sample(
        self, logits: Tensor, ids: NDArray[np.int64], slots: NDArray[np.int64], positions: NDArray[np.int32]
    ) -> "_Sampled":
        """A token for each row of logits, to stand at `positions` of the sequences `ids` in `slots`."""
        sequences, settings = self._sequences, self._sequences.sampling
        output_positions = positions - sequences.num_prompt[slots]
        raw = settings.distributions(logits, slots)
        logits = settings.adjusted(logits, slots, output_positions)
        failed = self._constraints.restrict(logits, ids)
        tokens = sample(logits, settings.rows(slots, output_positions))
        settings.sampled(slots, tokens)
        sequences.last_sampled[on_device(slots, self._device)] = tokens
        copy = _to_host(tokens, *(() if raw is None else raw.entries(tokens)))
        self._constraints.advance(ids, copy.read)
        return _Sampled(copy, settings.endings(slots), None if raw is None else raw.num_entries, failed)

    def _num_padding(self, step: Step) -> int | None:
        """Rows of nobody that make the step a recorded one; None where it runs without a graph."""
        if self._graphs is None or not len(step.num_tokens) or (step.num_tokens > 1).any():
            return None
        return self._graphs.num_padding(len(step.num_tokens))

    def _check(self, rows: "_Arranged") -> None:
        """A row that runs out of tokens or blocks would read what is not its own."""
        sequences = self._sequences
        known = sequences.num_known[rows.slots]
        ends = rows.positions + rows.num_tokens
        held = rows.slots != NOBODY
        beyond = held & (rows.num_tokens > 1) & (ends > known)
        short = held & (ends > sequences.num_blocks[rows.slots] * self.info.block_tokens)
        for wrong, what in ((beyond, "tokens"), (short, "KV blocks")):
            if wrong.any():
                row = int(rows.order[np.flatnonzero(wrong)[0]])
                raise EngineError(f"row {row} of the step reaches beyond the {what} its sequence has")

    def _inputs(self, rows: "_Arranged", sampled: NDArray[np.int64]) -> Inputs:
        """The flat batch. Tokens that only the device knows are put in there."""
        sequences, size = self._sequences, self.info.block_tokens
        total = int(rows.num_tokens.sum())
        row_of = np.repeat(np.arange(len(rows.slots)), rows.num_tokens)
        positions = np.arange(total) - np.repeat(rows.starts - rows.positions, rows.num_tokens)
        blocks = sequences.tables[rows.slots[row_of], positions // size].astype(np.int64)
        host = np.zeros(total, np.int64)
        from_host = rows.positions < sequences.num_known[rows.slots]
        for row in np.flatnonzero(from_host & (rows.slots != NOBODY)).tolist():
            start, position, length = rows.starts[row], rows.positions[row], rows.num_tokens[row]
            host[start : start + length] = sequences.tokens[int(rows.slots[row])][position : position + length]
        decodes = np.flatnonzero(~from_host & (rows.num_tokens == 1))
        arrays = [host, positions, blocks * size + positions % size, sampled, rows.starts[decodes], rows.slots[decodes]]
        tokens, *others, where, decoding = to_device(arrays, self._device)
        if len(decodes):
            tokens[where] = sequences.last_sampled[decoding]
        return Inputs(tokens, *others)

    def _attention_rows(self, rows: "_Arranged") -> Rows:
        contexts = rows.positions + rows.num_tokens
        width = int(-(-contexts.max() // self.info.block_tokens))
        tables = self._sequences.tables[rows.slots, :width].astype(np.int64)
        return Rows(int((rows.num_tokens == 1).sum()), rows.num_tokens, contexts, tables)


class _HostCopy(NamedTuple):
    """What a step made, on its way to the host."""

    tokens: Tensor
    entries: tuple[Tensor, ...]
    """Of log-probabilities, as `RawDistributions.entries`; empty where none were asked for."""
    computed_ns: int
    """0: not known before `done`."""
    done: torch.cuda.Event | None

    def read(self) -> NDArray[np.int32]:
        """The tokens, once they are there."""
        if self.done is not None:
            self.done.synchronize()
        return self.tokens.numpy().astype(np.int32)


class _Sampled(NamedTuple):
    """What the sampling rows of a step have come to."""

    copy: _HostCopy
    endings: Endings
    num_entries: NDArray[np.int8] | None
    """Log-probabilities of each row; None: of no row."""
    failed: dict[int, str]
    """Sequences whose row means nothing, and why."""


class _Launched(NamedTuple):
    """A step that nobody collected yet."""

    step: int
    launched_ns: int
    sampled: _Sampled
    pooled: Pooled


class _Arranged(NamedTuple):
    """A step's rows in the order of the flat batch: single tokens first, among them shorter contexts first."""

    order: NDArray[np.int64]
    """The step's row at each place; rows of nobody that pad the step come after its own."""
    slots: NDArray[np.int64]
    positions: NDArray[np.int64]
    num_tokens: NDArray[np.int64]
    starts: NDArray[np.int64]
    """Where each row's tokens begin in the flat batch."""
    last_token_of_row: NDArray[np.int64]
    """For each row of the step, in its own order, where its last token is in the flat batch."""


def _arrange(step: Step, slots: NDArray[np.int64], num_padding: int) -> _Arranged:
    # A sequence that is gone has no context to read: it computes as if at its beginning.
    positions, num_tokens = np.where(slots == NOBODY, 0, step.positions), step.num_tokens.astype(np.int64)
    if num_padding:
        positions = np.pad(positions, (0, num_padding))
        num_tokens = np.pad(num_tokens, (0, num_padding), constant_values=1)
        slots = np.pad(slots, (0, num_padding), constant_values=NOBODY)
    order = np.lexsort((positions, num_tokens > 1))
    num_tokens = num_tokens[order]
    ends = np.cumsum(num_tokens)
    last_token_of_row = np.empty(len(order), np.int64)
    last_token_of_row[order] = ends - 1
    return _Arranged(order, slots[order], positions[order], num_tokens, ends - num_tokens, last_token_of_row)


def _nothing(endings: Endings) -> "_Sampled":
    """Of a step without rows, which only releases sequences."""
    return _Sampled(_HostCopy(torch.empty(0, dtype=torch.int64), (), time.monotonic_ns(), None), endings, None, {})


def _to_host(tokens: Tensor, *entries: Tensor) -> _HostCopy:
    """Starts the copies; on a CPU all is there already."""
    if tokens.device.type == "cpu":
        return _HostCopy(tokens, entries, time.monotonic_ns(), None)
    tokens, *entries_there = (_pinned(each) for each in (tokens, *entries))
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()
    return _HostCopy(tokens, tuple(entries_there), 0, done)


def _pinned(tensor: Tensor) -> Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
