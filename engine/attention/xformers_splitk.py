"""Attention on CUDA through xformers 0.0.35: split-K over paged KV for decodes, flash over gathered KV for prefills.

`triton_splitKF` takes causal masks only for equal, short queries, so chunks go another way: their context is gathered
into contiguous keys and values and given to torch's flash kernel as blocks on a diagonal.
"""

from typing import Any, NamedTuple

import torch
import xformers.ops as xops
from torch import Tensor
from xformers.ops.fmha import attn_bias, flash, triton_splitk

from engine.attention.interface import Rows, StepAttention
from engine.config import ModelConfig
from engine.kv_cache import KvCache


class XformersAttention:
    """See the module. Page size: the block, a multiple of 64."""

    name = "xformers_splitk"

    def __init__(self, config: ModelConfig, cache: KvCache) -> None:
        self.config = config
        self.cache = cache
        self.device = cache.keys[0].device
        self.groups = config.num_heads // config.num_kv_heads

    def plan(self, rows: Rows) -> StepAttention:
        """Biases for each width of window, block tables and the slots of the prefills' contexts."""
        windows = set(self.config.windows)
        size = self.cache.block_tokens
        decodes, prefills = range(rows.num_decodes), range(rows.num_decodes, len(rows.num_tokens))
        contexts = rows.contexts.tolist()
        decode_biases, prefill_biases, slots = {}, {}, None
        if decodes:
            tables = torch.from_numpy(rows.tables[: rows.num_decodes]).to(self.device, torch.int32)
            decode_biases = {
                window: decode_bias([contexts[row] for row in decodes], tables, size, window) for window in windows
            }
        if prefills:
            tables = torch.from_numpy(rows.tables)
            slots = torch.cat([context_slots(tables[row], contexts[row], size) for row in prefills]).to(self.device)
            lengths = rows.num_tokens[rows.num_decodes :].tolist()
            prefill_biases = {
                window: prefill_bias(lengths, contexts[rows.num_decodes :], window, self.device) for window in windows
            }
        return _Planned(self, rows.num_decodes, decode_biases, prefill_biases, slots)

    def decode(self, layer: int, query: Tensor, bias: Any) -> Tensor:
        """One query a sequence, [sequences, heads, head_dim], against paged keys."""
        keys, values = (pool[layer].flatten(0, 1) for pool in (self.cache.keys, self.cache.values))
        # The operator must be named: the default dispatch takes it only for shapes unlike ours.
        return self._attention(query, keys, values, bias, triton_splitk.FwOp)

    def prefill(self, layer: int, query: Tensor, bias: Any, slots: Tensor) -> Tensor:
        """Chunks [tokens, heads, head_dim] against their gathered contexts."""
        keys, values = (pool[layer].flatten(0, 1)[slots] for pool in (self.cache.keys, self.cache.values))
        return self._attention(query, keys, values, bias, flash.FwOp)

    def _attention(self, query: Tensor, keys: Tensor, values: Tensor, bias: Any, operator: Any) -> Tensor:
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


def decode_bias(contexts: list[int], tables: Tensor, page_tokens: int, window: int | None) -> Any:
    """Each single query sees its context, or the end of it that the window leaves. `tables`: int32 [rows, pages]."""
    ones = [1] * len(contexts)
    if window is None:
        paged = attn_bias.PagedBlockDiagonalPaddedKeysMask
        return paged.from_seqlens(ones, contexts, tables, page_tokens, device=tables.device)
    row_tokens = tables.shape[1] * page_tokens
    starts = [row * row_tokens + max(0, context - window) for row, context in enumerate(contexts)]
    lengths = [min(context, window) for context in contexts]
    gappy = attn_bias.BlockDiagonalGappyKeysMask.from_seqlens(
        ones, [*starts, len(contexts) * row_tokens], lengths, device=tables.device
    )
    return gappy.make_paged(tables, page_tokens, row_tokens, attn_bias.PagedBlockDiagonalGappyKeysMask)


def prefill_bias(num_queries: list[int], contexts: list[int], window: int | None, device: torch.device) -> Any:
    """Each chunk is causal from the end of its context, which holds the chunk."""
    causal = attn_bias.BlockDiagonalCausalFromBottomRightMask.from_seqlens(num_queries, contexts, device=device)
    return causal if window is None else causal.make_local_attention_from_bottomright(window)


def context_slots(table: Tensor, context: int, block_tokens: int) -> Tensor:
    """Where the keys of a row's first `context` positions are, int64 [context]."""
    return (table[:, None] * block_tokens + torch.arange(block_tokens)).flatten()[:context]


class _Planned(NamedTuple):
    """A planned step."""

    backend: XformersAttention
    num_decodes: int
    decode_biases: dict[int | None, Any]
    prefill_biases: dict[int | None, Any]
    slots: Tensor | None

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """As `StepAttention.attend`."""
        backend, window = self.backend, self.backend.config.windows[layer]
        parts = []
        if self.decode_biases:
            parts.append(backend.decode(layer, query[: self.num_decodes], self.decode_biases[window]))
        if self.slots is not None:
            chunks = query[self.num_decodes :]
            parts.append(backend.prefill(layer, chunks, self.prefill_biases[window], self.slots))
        return parts[0] if len(parts) == 1 else torch.cat(parts)
