"""Attention on CUDA through xformers 0.0.35: split-K over paged KV for decodes, flash over gathered KV for prefills.

`triton_splitKF` takes causal masks only for equal, short queries, so chunks go another way: their context is gathered
into contiguous keys and values and given to torch's flash kernel as blocks on a diagonal.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import xformers.ops as xops
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from xformers.ops.fmha import attn_bias, flash, triton_splitk

from engine.attention.interface import Rows, StepAttention
from engine.attention.steady import NO_ROWS, padded, padded_blocks, padded_rows, starts
from engine.config import ModelConfig
from engine.kv_cache import KvCache
from engine.transfer import Landing, to_device

ENOUGH_PROGRAMS = 1024
"""Kernel programs that keep a device busy: eight on each of an H200's 132 multiprocessors."""
LEAST_SPLIT_TOKENS = 128
"""Two of the kernel's blocks: a shorter part of a context costs more to merge than it gains."""
MOST_SPLITS = 128


class XformersAttention:
    """See the module. Page size: the block, a multiple of 64."""

    name = "xformers_splitk"

    def __init__(self, config: ModelConfig, cache: KvCache) -> None:
        self.config = config
        self.cache = cache
        self.device = cache.keys[0].device
        self.groups = config.num_heads // config.num_kv_heads
        self._steady: dict[tuple[int, int], Decodes] = {}

    def plan(self, rows: Rows) -> StepAttention:
        """Decodes in a padded shape, and for the chunks biases of each width of window and their contexts' slots."""
        size = self.cache.block_tokens
        decodes, chunks = None, None
        if rows.num_decodes:
            longest = int(rows.contexts[: rows.num_decodes].max())
            decodes = self.steady(padded_rows(rows.num_decodes), padded_blocks(longest, size, self.cache.num_blocks))
            decodes.fill(rows)
        if rows.num_decodes < len(rows.num_tokens):
            chunks = self._chunks(rows)
        return _Planned(rows.num_decodes, decodes, chunks)

    def steady(self, num_rows: int, num_blocks: int) -> "Decodes":
        """As `GraphAttention.steady`."""
        shape = num_rows, num_blocks
        if shape not in self._steady:
            self._steady[shape] = Decodes(self, num_rows, num_blocks)
        return self._steady[shape]

    def _chunks(self, rows: Rows) -> "_Chunks":
        first = rows.num_decodes
        num_queries, contexts = rows.num_tokens[first:], rows.contexts[first:]
        slots = [
            context_slots(table, context, self.cache.block_tokens)
            for table, context in zip(rows.tables[first:], contexts.tolist(), strict=True)
        ]
        sent = to_device([np.concatenate(slots), starts(num_queries), starts(contexts)], self.device)
        biases = {
            window: prefill_bias(num_queries.tolist(), contexts.tolist(), window, *sent[1:])
            for window in set(self.config.windows)
        }
        return _Chunks(self, biases, sent[0])

    def attention(self, query: Tensor, keys: Tensor, values: Tensor, bias: Any, operator: Any) -> Tensor:
        """In the grouped form [1, tokens, kv_heads, group, head_dim], keys expanded over the group without a copy."""
        kv_heads, head_dim = keys.shape[1:]
        grouped = (1, -1, kv_heads, self.groups, head_dim)
        out: Tensor = xops.memory_efficient_attention_forward(
            query.view(1, -1, kv_heads, self.groups, head_dim),
            keys[None, :, :, None].expand(grouped),
            values[None, :, :, None].expand(grouped),
            attn_bias=bias,
            op=operator,
        )
        return out.reshape(query.shape)


class Decodes:
    """As `SteadyDecodes`: one query a row against paged keys.

    The kernel is compiled for each number of rows, pages and splits, so these are padded to few.
    """

    def __init__(self, backend: XformersAttention, num_rows: int, num_blocks: int) -> None:
        self._backend = backend
        self.num_rows, self.num_blocks = num_rows, num_blocks
        size = backend.cache.block_tokens
        self._windows = sorted({window for window in backend.config.windows if window is not None})
        self._landing = Landing(self._arrays(NO_ROWS), backend.device)
        contexts, tables, *firsts = self._landing.tensors
        self._biases: dict[int | None, Any] = {None: decode_bias(contexts, tables, size)}
        for window, first in zip(self._windows, firsts, strict=True):
            self._biases[window] = windowed_bias(first, contexts, tables, size)
        splits = num_splits(num_rows * backend.config.num_kv_heads, num_blocks * size)
        # The operator must be named: the default dispatch takes it only for shapes unlike ours. Its own choice of
        # splits makes many more parts than a device has room for, and writes as many results.
        self._operator = triton_splitk.FwOp.get_operator(splits)

    def fill(self, rows: Rows) -> None:
        """As `SteadyDecodes.fill`."""
        self._landing.fill(self._arrays(rows))

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """As `StepAttention.attend`, for as many queries as there are rows, or fewer."""
        backend = self._backend
        keys, values = (pool[layer].flatten(0, 1) for pool in (backend.cache.keys, backend.cache.values))
        missing = self.num_rows - len(query)
        filled = functional.pad(query, (0, 0, 0, 0, 0, missing)) if missing else query
        bias = self._biases[backend.config.windows[layer]]
        return backend.attention(filled, keys, values, bias, self._operator)[: len(query)]

    def _arrays(self, rows: Rows) -> list[NDArray[np.int32]]:
        contexts, tables = padded(rows, self.num_rows, self.num_blocks)
        return [contexts, tables, *(np.maximum(contexts - window, 0) for window in self._windows)]


def num_splits(num_programs: int, width: int) -> int:
    """How many parts of a context of `width` tokens are computed side by side, of `num_programs` rows and heads."""
    splits = 1
    while splits < MOST_SPLITS and num_programs * splits < ENOUGH_PROGRAMS and width // splits > LEAST_SPLIT_TOKENS:
        splits *= 2
    return splits


def decode_bias(contexts: Tensor, tables: Tensor, page_tokens: int) -> Any:
    """Each single query sees its context: `contexts` int32 [rows], `tables` int32 [rows, pages].

    What the bias keeps on the host is the contexts that fit, not those there are: no kernel looks at it.
    """
    rows, width = len(contexts), tables.shape[1] * page_tokens
    paged = attn_bias.PagedBlockDiagonalPaddedKeysMask
    bias = paged.from_seqlens([1] * rows, [width] * rows, tables, page_tokens, device=contexts.device)
    bias.k_seqinfo.seqlen = contexts
    return bias


def windowed_bias(firsts: Tensor, contexts: Tensor, tables: Tensor, page_tokens: int) -> Any:
    """Each single query sees its context from position `firsts` on, int32 [rows]."""
    rows, width = len(contexts), tables.shape[1] * page_tokens
    # Not through the paged class itself: its constructor refuses every input.
    gappy = attn_bias.BlockDiagonalGappyKeysMask.from_seqlens(
        [1] * rows, list(range(0, (rows + 1) * width, width)), [width] * rows, device=contexts.device
    )
    bias = gappy.make_paged(tables, page_tokens, width, attn_bias.PagedBlockDiagonalGappyKeysMask)
    bias.k_seqinfo.seqstart, bias.k_seqinfo.seqlen = firsts, contexts
    return bias


def prefill_bias(
    num_queries: list[int], contexts: list[int], window: int | None, query_starts: Tensor, key_starts: Tensor
) -> Any:
    """Each chunk is causal from the end of its context, which holds the chunk.

    `query_starts`, `key_starts`: int32 [chunks + 1], where each one's queries and keys begin.
    """
    # Made on the CPU, where it costs no wait for the device.
    masks = attn_bias.BlockDiagonalCausalFromBottomRightMask
    causal = masks.from_seqlens(num_queries, contexts, device=torch.device("cpu"))
    bias = causal if window is None else causal.make_local_attention_from_bottomright(window)
    bias.q_seqinfo.seqstart, bias.k_seqinfo.seqstart = query_starts, key_starts
    return bias


def context_slots(table: NDArray[np.int64], context: int, block_tokens: int) -> NDArray[np.int64]:
    """Where the keys of a row's first `context` positions are, int64 [context]."""
    return (table[:, None] * block_tokens + np.arange(block_tokens)).reshape(-1)[:context]


class _Chunks(NamedTuple):
    """The prefill part of a step."""

    backend: XformersAttention
    biases: dict[int | None, Any]
    slots: Tensor

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """Chunks [tokens, heads, head_dim] against their gathered contexts."""
        cache, slots = self.backend.cache, self.slots
        keys, values = (pool[layer].flatten(0, 1)[slots] for pool in (cache.keys, cache.values))
        bias = self.biases[self.backend.config.windows[layer]]
        return self.backend.attention(query, keys, values, bias, flash.FwOp)


class _Planned(NamedTuple):
    """A planned step."""

    num_decodes: int
    decodes: Decodes | None
    chunks: _Chunks | None

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """As `StepAttention.attend`."""
        parts = []
        if self.decodes is not None:
            parts.append(self.decodes.attend(layer, query[: self.num_decodes]))
        if self.chunks is not None:
            parts.append(self.chunks.attend(layer, query[self.num_decodes :]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)
