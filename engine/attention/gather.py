"""Attention by gathering blocks and torch's scaled dot product: `cpu_gather`, and `sdpa_gather` on CUDA.

The heads of one KV group become extra query rows, so keys and values are never repeated. Right on every device and
dtype; the reference for the other backends.

The order of a sum decides its last bits. So the keys that a query is given, and how far they are padded, follow from
its position alone, never from its batch mates or its chunk (`spans`): a CPU in fp32 then gives it the same bits always.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from engine.attention.interface import Rows, StepAttention
from engine.config import ModelConfig
from engine.kv_cache import KvCache
from engine.transfer import to_device

PIECE = 256
"""Queries of a prefill chunk taken at once: bounds the mask, and spares keys that only later queries see."""
WIDTHS = np.sort(np.outer((64, 96), 2 ** np.arange(20)).flatten())
"""How many keys a query may be given: a third more than the last, or a half."""


class Spans(NamedTuple):
    """The keys gathered for each of some queries: `widths` of them from `firsts` on, both [queries] in tokens."""

    firsts: NDArray[np.int64]
    widths: NDArray[np.int64]
    window: int | None

    def at(self, queries: slice) -> "Spans":
        """Of some of the queries."""
        return Spans(self.firsts[queries], self.widths[queries], self.window)


def spans(positions: NDArray[np.int64], window: int | None, block_tokens: int) -> Spans:
    """Whole blocks that hold all that the queries at `positions` see.

    There are few different widths, and a window's first block stays the same for `PIECE` positions, so that rows and
    the queries of a chunk can be taken together.
    """
    step = -(-PIECE // block_tokens) * block_tokens
    firsts = np.zeros_like(positions) if window is None else np.maximum(positions - window + 1, 0) // step * step
    widths = WIDTHS[np.searchsorted(WIDTHS, positions - firsts + 1)]
    return Spans(firsts, -(-widths // block_tokens) * block_tokens, window)


def runs(*columns: NDArray[np.int64]) -> list[slice]:
    """Where all columns stay the same."""
    changes = np.flatnonzero(np.any([column[1:] != column[:-1] for column in columns], 0)) + 1
    edges = [0, *changes.tolist(), len(columns[0])]
    return [slice(start, stop) for start, stop in pairwise(edges) if start < stop]


class GatherAttention:
    """See the module."""

    def __init__(self, name: str, config: ModelConfig, cache: KvCache) -> None:
        self.name = name
        self.config = config
        self.cache = cache
        self.device, self.dtype = cache.keys[0].device, cache.keys[0].dtype
        self.groups = config.num_heads // config.num_kv_heads
        # A CPU's BLAS has other kernels, with other last bits, for fewer query rows than about head_dim / 24, on some
        # for fewer than 4. Torch takes them in tiles of 32 or more, so that a power of two keeps the last tile from
        # being too small.
        self.row_multiple = max(4, 1 << (config.head_dim // 16 - 1).bit_length()) if self.device.type == "cpu" else 1
        self._buffers: dict[str, Tensor] = {}

    def plan(self, rows: Rows) -> StepAttention:
        """The parts of a step for each width of window that the layers have."""
        windows = sorted(set(self.config.windows), key=lambda window: window or 0)
        return _Gathered(self, {window: self._parts(rows, window) for window in windows})

    def _parts(self, rows: Rows, window: int | None) -> list["_Part"]:
        size = self.cache.block_tokens
        positions = rows.contexts[: rows.num_decodes] - 1
        ours = spans(positions, window, size)
        parts = [self._decodes(rows.tables[run], run, positions[run], ours.at(run)) for run in runs(ours.widths)]
        offset = rows.num_decodes
        for row in range(rows.num_decodes, len(rows.num_tokens)):
            num_tokens, context = int(rows.num_tokens[row]), int(rows.contexts[row])
            positions = np.arange(context - num_tokens, context)
            ours = spans(positions, window, size)
            for run in runs(ours.firsts, ours.widths):
                for start in range(run.start, run.stop, PIECE):
                    piece = slice(start, min(start + PIECE, run.stop))
                    queries = slice(offset + piece.start, offset + piece.stop)
                    parts.append(self._chunk(rows.tables[row], queries, positions[piece], ours.at(piece)))
            offset += num_tokens
        return parts

    def _decodes(self, tables: NDArray[np.int64], queries: slice, positions: NDArray[np.int64], ours: Spans) -> "_Part":
        """Rows of one query each, with spans of one width: each row's blocks start at its own first block."""
        size, width = self.cache.block_tokens, int(ours.widths[0])
        firsts = ours.firsts[:, None]
        columns = np.minimum(firsts // size + np.arange(width // size), tables.shape[1] - 1)
        keys = firsts + np.arange(width)
        visible = _visible(keys[:, None], positions[:, None, None], ours.window)
        return self._part(queries, np.take_along_axis(tables, columns, 1), visible)

    def _chunk(self, table: NDArray[np.int64], queries: slice, positions: NDArray[np.int64], ours: Spans) -> "_Part":
        """Consecutive queries of one row, with one span."""
        size, first, width = self.cache.block_tokens, int(ours.firsts[0]), int(ours.widths[0])
        columns = np.minimum(np.arange(first // size, (first + width) // size), len(table) - 1)
        keys = np.arange(first, first + width)
        folded = np.tile(positions, self.groups)
        padded = np.pad(folded, (0, -len(folded) % self.row_multiple), mode="edge")
        return self._part(queries, table[None, columns], _visible(keys, padded[None, :, None], ours.window))

    def _part(self, queries: slice, blocks: NDArray[np.int64], visible: NDArray[np.bool_]) -> "_Part":
        mask = np.where(visible, np.float32(0), np.float32(-np.inf))
        numbers, added = to_device([blocks.reshape(-1), mask], self.device)
        return _Part(queries, len(blocks), numbers, added.to(self.dtype).unsqueeze(1))

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
        out = torch.zeros_like(
            query
        )  # also tokens that no row has: what an empty tensor holds might be slow to compute with
        for part in self.parts[backend.config.windows[layer]]:
            rows = part.num_rows
            folded = query[part.queries].view(rows, -1, kv_heads, backend.groups, head_dim).permute(0, 2, 3, 1, 4)
            folded = folded.reshape(rows, kv_heads, -1, head_dim)
            num_query_rows = folded.shape[2]
            if padding := -num_query_rows % backend.row_multiple:
                folded = functional.pad(folded, (0, 0, 0, padding))
            attended = functional.scaled_dot_product_attention(
                folded,
                backend.gather("keys", keys, part),
                backend.gather("values", values, part),
                part.mask,
            )
            attended = attended[:, :, :num_query_rows].reshape(rows, kv_heads, backend.groups, -1, head_dim)
            unfolded = attended.permute(0, 3, 1, 2, 4)
            out[part.queries] = unfolded.reshape(-1, kv_heads * backend.groups, head_dim)
        return out
