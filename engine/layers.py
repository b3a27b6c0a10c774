"""The layers a decoder is made of, over a flat batch of tokens [tokens, hidden]. Knows neither sequences nor KV."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from engine.config import Rope, rope_frequencies

Turns = tuple[Tensor, Tensor]
"""Cos and sin of some positions, each [tokens, 1, head_dim]."""


class Norm(NamedTuple):
    """Root mean square norm over the last dimension."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """The same shape."""
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Rotary:
    """Cosines and sines of every position, computed once.

    `cos`, `sin`: [positions, head_dim]. sin carries the sign of the first half, so that a rotation is
    `x * cos + swap_halves(x) * sin`.
    """

    def __init__(self, rope: Rope, head_dim: int, positions: int, dtype: torch.dtype, device: torch.device) -> None:
        frequencies, scale = rope_frequencies(rope, head_dim)
        angles = torch.outer(torch.arange(positions, dtype=torch.float32), torch.from_numpy(frequencies))
        cos, sin = angles.cos() * scale, angles.sin() * scale
        self.cos = torch.cat((cos, cos), -1).to(device, dtype)
        self.sin = torch.cat((-sin, sin), -1).to(device, dtype)

    def at(self, positions: Tensor) -> Turns:
        """Of positions [tokens]."""
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)


def rotate(x: Tensor, turns: Turns) -> Tensor:
    """`x` [tokens, heads, head_dim] turned by its position (RoFormer, halves layout)."""
    cos, sin = turns
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def gated(x: Tensor) -> Tensor:
    """SwiGLU of [tokens, 2 * width], gate half first."""
    gate, up = x.chunk(2, -1)
    return functional.silu(gate) * up
