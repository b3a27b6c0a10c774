"""Attention on CUDA through torch's own `varlen_attn` over paged KV: decodes and chunks in one call.

Torch's FlashAttention 2 takes pages of 256 tokens and multiples. It must not split a context: in torch 2.13 only the
first row of a split call is right (pytorch issue 194167), so one long context alone does not fill a device.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from engine.attention.interface import Rows, StepAttention
from engine.attention.steady import NO_ROWS, padded, starts
from engine.config import ModelConfig
from engine.kv_cache import KvCache
from engine.transfer import Landing, to_device

Kernel = Callable[..., Any]
"""Called as `torch.nn.attention.varlen.varlen_attn`."""


class VarlenAttention:
    """See the module."""

    name = "varlen_paged"

    def __init__(self, config: ModelConfig, cache: KvCache, kernel: Kernel = varlen_attn) -> None:
        self.config = config
        self.cache = cache
        self.kernel = kernel
        self.device = cache.keys[0].device
        self._steady: dict[tuple[int, int], _Decodes] = {}

    def plan(self, rows: Rows) -> StepAttention:
        """Where each row's queries and keys begin, how many keys it has and in which pages."""
        arrays = [starts(rows.num_tokens), starts(rows.contexts), _int32(rows.contexts), _int32(rows.tables)]
        return _Call(self, to_device(arrays, self.device), int(rows.num_tokens.max()), int(rows.contexts.max()))

    def steady(self, num_rows: int, num_blocks: int) -> "_Decodes":
        """As `GraphAttention.steady`."""
        shape = num_rows, num_blocks
        if shape not in self._steady:
            self._steady[shape] = _Decodes(self, num_rows, num_blocks)
        return self._steady[shape]


class _Call(NamedTuple):
    """A planned step."""

    backend: VarlenAttention
    tensors: list[Tensor]
    """int32: query starts [rows + 1], key starts [rows + 1], contexts [rows], tables [rows, pages]."""
    longest_queries: int
    longest_context: int

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """As `StepAttention.attend`."""
        backend = self.backend
        query_starts, key_starts, contexts, tables = self.tensors
        window = backend.config.windows[layer]
        attended: Tensor = backend.kernel(
            query.contiguous(),
            backend.cache.keys[layer],
            backend.cache.values[layer],
            query_starts,
            key_starts,
            self.longest_queries,
            self.longest_context,
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=True,
            seqused_k=contexts,
            block_table=tables,
            num_splits=1,
        )
        return attended


class _Decodes:
    """As `SteadyDecodes`."""

    def __init__(self, backend: VarlenAttention, num_rows: int, num_blocks: int) -> None:
        self._shape = num_rows, num_blocks
        self._landing = Landing(self._arrays(NO_ROWS), backend.device)
        self._call = _Call(backend, self._landing.tensors, 1, num_blocks * backend.cache.block_tokens)

    def fill(self, rows: Rows) -> None:
        """As `SteadyDecodes.fill`."""
        self._landing.fill(self._arrays(rows))

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """As `StepAttention.attend`, for as many queries as there are rows."""
        return self._call.attend(layer, query)

    def _arrays(self, rows: Rows) -> list[NDArray[np.int32]]:
        contexts, tables = padded(rows, *self._shape)
        return [starts(np.ones(len(contexts), np.int64)), starts(contexts), contexts, tables]


def _int32(array: NDArray[np.int64]) -> NDArray[np.int32]:
    return array.astype(np.int32)
