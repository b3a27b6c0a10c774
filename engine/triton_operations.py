"""What a layer does between its products on CUDA, in three kernels where torch takes a dozen.

With one row to decode, a kernel that does next to nothing takes as long as it takes to start; a layer has four products
and one attention, and all the rest should be as few. Sums are in float32; numbers are rounded where torch rounds them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.config import ModelConfig
from engine.kv_cache import KvCache
from engine.layers import Norm, Turns

GATED_BLOCK = 1024
"""Numbers that a program gates."""


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm(  # type: ignore[no-untyped-def]  # noqa: PLR0917  Triton passes by position
    x, added, weight, out, width, eps, adds: tl.constexpr, block: tl.constexpr
):
    """A program a row: x += added, and the norm of that to `out`."""
    row = tl.program_id(0).to(tl.int64) * width
    place = tl.arange(0, block)
    inside = place < width
    numbers = tl.load(x + row + place, inside, 0.0)
    if adds:
        numbers = (numbers.to(tl.float32) + tl.load(added + row + place, inside, 0.0).to(tl.float32)).to(numbers.dtype)
        tl.store(x + row + place, numbers, inside)
    wide = numbers.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / width + eps)
    scaled = wide * scale * tl.load(weight + place, inside, 0.0).to(tl.float32)
    tl.store(out + row + place, scaled.to(numbers.dtype), inside)


@triton.jit  # type: ignore[untyped-decorator]
def _gate(x, out, width, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """A program some numbers of a row: silu of the first half times the second."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * block + tl.arange(0, block)
    inside = place < width
    gate = tl.load(x + row * 2 * width + place, inside, 0.0)
    up = tl.load(x + row * 2 * width + width + place, inside, 0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    tl.store(out + row * width + place, (silu.to(tl.float32) * up.to(tl.float32)).to(gate.dtype), inside)


@triton.jit  # type: ignore[untyped-decorator]
def _place(  # type: ignore[no-untyped-def]  # noqa: PLR0917  Triton passes by position
    qkv,
    cos,
    sin,
    slots,
    query_weight,
    key_weight,
    query,
    keys,
    values,
    eps,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    size: tl.constexpr,
    norms: tl.constexpr,
    block: tl.constexpr,
):
    """A program one head of one token: norm, turn, and where it belongs."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half: tl.constexpr = size // 2
    place = tl.arange(0, block)
    inside = place < half
    source = qkv + (token * (heads + 2 * kv_heads) + head) * size
    first = tl.load(source + place, inside, 0.0)
    second = tl.load(source + half + place, inside, 0.0)
    if head >= heads + kv_heads:
        target = values + (tl.load(slots + token) * kv_heads + head - heads - kv_heads) * size
        tl.store(target + place, first, inside)
        tl.store(target + half + place, second, inside)
    else:
        if norms:
            weight = query_weight if head < heads else key_weight
            wide_first, wide_second = first.to(tl.float32), second.to(tl.float32)
            total = tl.sum(wide_first * wide_first, 0) + tl.sum(wide_second * wide_second, 0)
            scale = 1.0 / tl.sqrt(total / size + eps)
            first = (wide_first * scale * tl.load(weight + place, inside, 0.0).to(tl.float32)).to(first.dtype)
            second = (wide_second * scale * tl.load(weight + half + place, inside, 0.0).to(tl.float32)).to(first.dtype)
        turn = token * size + place
        cos_first = tl.load(cos + turn, inside, 0.0).to(tl.float32)
        cos_second = tl.load(cos + turn + half, inside, 0.0).to(tl.float32)
        sin_first = tl.load(sin + turn, inside, 0.0).to(tl.float32)
        sin_second = tl.load(sin + turn + half, inside, 0.0).to(tl.float32)
        wide_first, wide_second = first.to(tl.float32), second.to(tl.float32)
        turned_first = (wide_first * cos_first + wide_second * sin_first).to(first.dtype)
        turned_second = (wide_second * cos_second + wide_first * sin_second).to(first.dtype)
        if head < heads:
            target = query + (token * heads + head) * size
        else:
            target = keys + (tl.load(slots + token) * kv_heads + head - heads) * size
        tl.store(target + place, turned_first, inside)
        tl.store(target + half + place, turned_second, inside)


class TritonOperations:
    """As `engine.operations.Operations`."""

    def __init__(self, config: ModelConfig) -> None:
        self._heads, self._kv_heads, self._size = config.num_heads, config.num_kv_heads, config.head_dim
        self._eps = config.norm_eps

    def add_norm(self, x: Tensor, added: Tensor | None, norm: Norm) -> Tensor:
        """As `Operations.add_norm`."""
        width = x.shape[-1]
        out = torch.empty_like(x)
        others = x if added is None else added
        block = triton.next_power_of_2(width)
        _add_norm[(len(x),)](
            x, others, norm.weight, out, width, norm.eps, adds=added is not None, block=block, num_warps=8
        )
        return out

    def gated(self, x: Tensor) -> Tensor:
        """As `Operations.gated`."""
        width = x.shape[-1] // 2
        out = torch.empty((len(x), width), dtype=x.dtype, device=x.device)
        _gate[(len(x), triton.cdiv(width, GATED_BLOCK))](x, out, width, block=GATED_BLOCK)
        return out

    def place(
        self, qkv: Tensor, norms: tuple[Norm, Norm] | None, turns: Turns, *, slots: Tensor, cache: KvCache, layer: int
    ) -> Tensor:
        """As `Operations.place`."""
        query = torch.empty((len(qkv), self._heads, self._size), dtype=qkv.dtype, device=qkv.device)
        # Without norms a pointer must still be given; nothing is read there.
        query_weight, key_weight = (qkv, qkv) if norms is None else (norm.weight for norm in norms)
        _place[(len(qkv), self._heads + 2 * self._kv_heads)](
            qkv,
            *turns,
            slots,
            query_weight,
            key_weight,
            query,
            cache.keys[layer],
            cache.values[layer],
            self._eps,
            heads=self._heads,
            kv_heads=self._kv_heads,
            size=self._size,
            norms=norms is not None,
            block=triton.next_power_of_2(self._size // 2),
            num_warps=1,
        )
        return query
