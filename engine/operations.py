"""What a layer does between its products: by torch's operators, Triton's kernels, or the C++ library on a CPU.

All compute the same to rounding; which one it is follows from the model, never from a step.
"""

import importlib.util
from typing import Protocol

import torch
from torch import Tensor

from engine import native
from engine.config import ModelConfig
from engine.kv_cache import KvCache
from engine.layers import Norm, Turns, gated, rotate
from engine.native.kernels import SUFFIXES, HeadShape, Kernels

HeadNorms = tuple[Norm, Norm] | None
"""Of queries and of keys, where a model norms them."""


class Operations(Protocol):
    """See the module."""

    def add_norm(self, x: Tensor, added: Tensor | None, norm: Norm) -> Tensor:
        """`x += added` in place, and what `norm` makes of that; all [tokens, hidden]."""

    def gated(self, x: Tensor) -> Tensor:
        """SwiGLU of [tokens, 2 * width], gate half first."""

    def place(
        self, qkv: Tensor, norms: HeadNorms, turns: Turns, *, slots: Tensor, cache: KvCache, layer: int
    ) -> Tensor:
        """Queries [tokens, heads, head_dim] of `qkv` [tokens, all heads * head_dim], turned by their positions.

        Keys, turned too, and values are written to `slots` [tokens] of the cache. `qkv` is not to be used again.
        """


class TorchOperations:
    """On any device, in any dtype and shape."""

    def __init__(self, config: ModelConfig) -> None:
        self._heads = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        self._head_dim = config.head_dim

    def add_norm(self, x: Tensor, added: Tensor | None, norm: Norm) -> Tensor:
        """As `Operations.add_norm`."""
        return norm(x if added is None else x.add_(added))

    def gated(self, x: Tensor) -> Tensor:
        """As `Operations.gated`."""
        return gated(x)

    def place(
        self, qkv: Tensor, norms: HeadNorms, turns: Turns, *, slots: Tensor, cache: KvCache, layer: int
    ) -> Tensor:
        """As `Operations.place`."""
        query, key, value = torch.split(qkv.view(len(qkv), -1, self._head_dim), self._heads, 1)
        if norms is not None:
            query, key = norms[0](query), norms[1](key)
        cache.write(layer, slots, rotate(key, turns), value)
        return rotate(query, turns)


class NativeOperations:
    """In C++, where widths are multiples of 16."""

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        self._heads = HeadShape(config.num_heads, config.num_kv_heads, config.head_dim)
        self._eps = config.norm_eps
        self._kernels = kernels

    def add_norm(self, x: Tensor, added: Tensor | None, norm: Norm) -> Tensor:
        """As `Operations.add_norm`."""
        return self._kernels.add_norm(x, added, norm.weight, norm.eps)

    def gated(self, x: Tensor) -> Tensor:
        """As `Operations.gated`."""
        return self._kernels.gated(x)

    def place(
        self, qkv: Tensor, norms: HeadNorms, turns: Turns, *, slots: Tensor, cache: KvCache, layer: int
    ) -> Tensor:
        """As `Operations.place`."""
        weights = None if norms is None else (norms[0].weight, norms[1].weight)
        pool = cache.keys[layer], cache.values[layer]
        self._kernels.place(qkv, self._heads, norms=weights, eps=self._eps, turns=turns, slots=slots, pool=pool)
        return qkv.view(len(qkv), -1, self._heads.size)[:, : self._heads.queries]


def choose_operations(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Operations:
    """The fastest that fit."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        # Imported here: it comes with torch's CUDA build alone.
        from engine.triton_operations import TritonOperations  # noqa: PLC0415

        return TritonOperations(config)
    widths = (config.hidden_size, config.intermediate_size, config.head_dim)
    path = native.locate().path
    if device.type != "cpu" or dtype not in SUFFIXES or path is None or any(w % native.MULTIPLE for w in widths):
        return TorchOperations(config)
    return NativeOperations(config, Kernels(path, dtype))
