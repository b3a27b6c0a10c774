"""The layers a decoder is made of, over a flat batch of tokens [tokens, hidden]. Knows neither sequences nor KV."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from engine.config import Rope, rope_frequencies
from engine.weights import Checkpoint

LEAST_ROWS = 16
"""A CPU's BLAS takes other kernels for fewer rows, and these differ in the last bits: a token would then depend on how
many others its step holds."""


class Linear(NamedTuple):
    """y = x W^T + b; `weight` [out, in]. On a CPU a row's result is the same bits in batches of any size.

    Measured with MKL to 600 rows for the demo's shapes; it splits the sums of much wider inputs by the number of rows.
    """

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, in] to [tokens, out]."""
        num_rows = len(x)
        if num_rows < LEAST_ROWS and x.device.type == "cpu":
            x = functional.pad(x, (0, 0, 0, LEAST_ROWS - num_rows))
        return functional.linear(x, self.weight, self.bias)[:num_rows]


class Norm(NamedTuple):
    """Root mean square norm over the last dimension."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """The same shape."""
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


def load_linear(checkpoint: Checkpoint, prefix: str, outs: dict[str, int], size: int, *, bias: bool) -> Linear:
    """Projections of the same input as one, for fewer and larger products. `outs`: names and widths, in order."""
    weights = [checkpoint.tensor(f"{prefix}.{name}.weight", out, size) for name, out in outs.items()]
    biases = [checkpoint.tensor(f"{prefix}.{name}.bias", out) for name, out in outs.items()] if bias else []
    return Linear(_joined(weights), _joined(biases) if biases else None)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)


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

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cos and sin of positions [tokens], each [tokens, 1, head_dim]."""
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)


def rotate(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """`x` [tokens, heads, head_dim] turned by its position (RoFormer, halves layout)."""
    cos, sin = turns
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def gated(x: Tensor) -> Tensor:
    """SwiGLU of [tokens, 2 * width], gate half first."""
    gate, up = x.chunk(2, -1)
    return functional.silu(gate) * up
