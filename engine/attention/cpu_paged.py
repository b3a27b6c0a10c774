"""Attention on a CPU by the C++ library: keys and values are read where they lie, nothing is gathered or padded.

A query's sums run over tiles of keys that begin at fixed positions, so its bits depend on its position alone.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.attention.interface import Rows, StepAttention
from engine.config import ModelConfig
from engine.kv_cache import KvCache
from engine.native.kernels import HeadShape, Kernels, Paged


class PagedAttention:
    """See the module. Blocks and heads are multiples of 16."""

    name = "cpu_paged"

    def __init__(self, config: ModelConfig, cache: KvCache, kernels: Kernels) -> None:
        self.windows = config.windows
        self.cache = cache
        self.kernels = kernels
        self.heads = HeadShape(config.num_heads, config.num_kv_heads, config.head_dim)

    def plan(self, rows: Rows) -> StepAttention:
        """Nothing but the rows themselves."""
        arrays = rows.tables.astype(np.int32), rows.contexts, rows.num_tokens
        return _Planned(self, Paged(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)))


class _Planned(NamedTuple):
    """A step."""

    backend: PagedAttention
    paged: Paged

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """As `StepAttention.attend`; tokens beyond the rows get zeros."""
        backend = self.backend
        pool = backend.cache.keys[layer], backend.cache.values[layer]
        return backend.kernels.attend(query, backend.heads, self.paged, pool, backend.windows[layer])
