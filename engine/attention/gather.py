"""Attention by gathering blocks and torch's scaled dot product: `cpu_gather`, and `sdpa_gather` on CUDA.

The heads of one KV group become extra query rows, so keys and values are never repeated. Right on every device and
dtype; the reference for the other backends.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from engine.attention.interface import Rows, StepAttention, buckets, first_block
from engine.config import ModelConfig
from engine.kv_cache import KvCache

PIECE = 256
"""Queries of a prefill chunk taken at once: bounds the mask, and spares keys that only later queries see."""


class GatherAttention:
    """See the module."""

    def __init__(self, name: str, config: ModelConfig, cache: KvCache) -> None:
        self.name = name
        self.config = config
        self.cache = cache
        self.device, self.dtype = cache.keys[0].device, cache.keys[0].dtype
        self.groups = config.num_heads // config.num_kv_heads
        self._buffers: dict[str, Tensor] = {}

    def plan(self, rows: Rows) -> StepAttention:
        """The parts of a step for each width of window that the layers have."""
        windows = sorted(set(self.config.windows), key=lambda window: window or 0)
        return _Gathered(self, {window: self._parts(rows, window) for window in windows})

    def _parts(self, rows: Rows, window: int | None) -> list["_Part"]:
        size = self.cache.block_tokens
        decode_blocks = -(-rows.contexts[: rows.num_decodes] // size)
        parts = [self._decodes(rows, run, window) for run in buckets(decode_blocks)]
        offset = rows.num_decodes
        for row in range(rows.num_decodes, len(rows.num_tokens)):
            num_tokens, context = int(rows.num_tokens[row]), int(rows.contexts[row])
            for start in range(0, num_tokens, PIECE):
                length = min(PIECE, num_tokens - start)
                position = context - num_tokens + start
                queries = slice(offset + start, offset + start + length)
                parts.append(self._chunk(rows.tables[row], queries, position, window))
            offset += num_tokens
        return parts

    def _decodes(self, rows: Rows, run: slice, window: int | None) -> "_Part":
        """Rows of one query each: with a window, each row's blocks start at its own first block."""
        size = self.cache.block_tokens
        positions = rows.contexts[run] - 1
        first = np.zeros_like(positions) if window is None else np.maximum(positions - window + 1, 0) // size
        width = int((positions // size - first).max()) + 1
        columns = np.minimum(first[:, None] + np.arange(width), rows.tables.shape[1] - 1)
        blocks = np.take_along_axis(rows.tables[run], columns, 1)
        keys = first[:, None] * size + np.arange(width * size)
        return self._part(run, blocks, _visible(keys[:, None], positions[:, None, None], window))

    def _chunk(self, table: NDArray[np.int64], queries: slice, position: int, window: int | None) -> "_Part":
        """Consecutive queries of one row, the first at `position`."""
        size = self.cache.block_tokens
        length = queries.stop - queries.start
        first, last = first_block(position, window, size), (position + length - 1) // size
        keys = np.arange(first * size, (last + 1) * size)
        positions = np.tile(np.arange(position, position + length), self.groups)
        return self._part(queries, table[None, first : last + 1], _visible(keys, positions[None, :, None], window))

    def _part(self, queries: slice, blocks: NDArray[np.int64], visible: NDArray[np.bool_]) -> "_Part":
        mask = np.where(visible, np.float32(0), np.float32(-np.inf))
        return _Part(
            queries,
            len(blocks),
            torch.from_numpy(blocks.reshape(-1)).to(self.device),
            torch.from_numpy(mask).to(self.device, self.dtype).unsqueeze(1),
        )

    def gather(self, name: str, source: Tensor, part: "_Part") -> Tensor:
        """The part's blocks of one layer as [rows, kv_heads, tokens, head_dim], in a buffer that is used again."""
        heads, head_dim = source.shape[2:]
        size = len(part.blocks) * source[0].numel()
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            self._buffers[name] = buffer = torch.empty(size, dtype=self.dtype, device=self.device)
        gathered = buffer[:size].view(len(part.blocks), -1)
        torch.index_select(source.flatten(1), 0, part.blocks, out=gathered)
        return gathered.view(part.num_rows, -1, heads, head_dim).transpose(1, 2)


def _visible(keys: NDArray[np.int64], positions: NDArray[np.int64], window: int | None) -> NDArray[np.bool_]:
    """Which keys a query sees, both by their positions: itself and what was before, as far as the window goes."""
    visible = keys <= positions
    return visible if window is None else visible & (keys > positions - window)


class _Part(NamedTuple):
    """One call of the dot product: `num_rows` sequences with the same number of queries each."""

    queries: slice
    num_rows: int
    blocks: Tensor
    """[num_rows * blocks of a row]."""
    mask: Tensor
    """Added to scores: [num_rows, 1, query rows or 1, tokens]."""


class _Gathered(NamedTuple):
    """A planned step."""

    backend: GatherAttention
    parts: dict[int | None, list[_Part]]

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """As `StepAttention.attend`."""
        backend = self.backend
        keys, values = backend.cache.keys[layer], backend.cache.values[layer]
        kv_heads, head_dim = keys.shape[2:]
        out = torch.empty_like(query)
        for part in self.parts[backend.config.windows[layer]]:
            rows = part.num_rows
            folded = query[part.queries].view(rows, -1, kv_heads, backend.groups, head_dim).permute(0, 2, 3, 1, 4)
            attended = functional.scaled_dot_product_attention(
                folded.reshape(rows, kv_heads, -1, head_dim),
                backend.gather("keys", keys, part),
                backend.gather("values", values, part),
                part.mask,
            )
            unfolded = attended.view(rows, kv_heads, backend.groups, -1, head_dim).permute(0, 3, 1, 2, 4)
            out[part.queries] = unfolded.reshape(-1, kv_heads * backend.groups, head_dim)
        return out
