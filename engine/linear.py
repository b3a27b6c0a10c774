"""Products with weights, on a CPU with weights laid out once as oneDNN reads them fastest.

Those operators are torch's own and private, so they are looked for and tried before they are used.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from engine.weights import Checkpoint

LEAST_ROWS = 16
"""A CPU's BLAS and oneDNN take other kernels for fewer rows, and these differ in the last bits: a token would then
depend on how many others its step holds."""
SHAPES_TO = 128
"""Padded to multiples of `LEAST_ROWS` up to here and of twice as many beyond."""


class Linear(NamedTuple):
    """y = x W^T + b. On a CPU a row's result is the same bits in batches of any size.

    Measured to 600 rows for the shapes of demo and tests, with MKL and packed; MKL splits the sums of much wider inputs
    by the number of rows.
    """

    weight: Tensor
    """[out, in]; packed: opaque."""
    bias: Tensor | None
    packed: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """[tokens, in] to [tokens, out]."""
        num_rows = len(x)
        if num_rows < LEAST_ROWS and x.device.type == "cpu":
            x = functional.pad(x, (0, 0, 0, LEAST_ROWS - num_rows))
        if self.packed:
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")  # noqa: SLF001
        else:
            y = functional.linear(x, self.weight, self.bias)
        return y[:num_rows]


class Packing(NamedTuple):
    """Whether weights are packed, and why."""

    packs: bool
    reason: str


@cache
def packing(device: str, dtype: torch.dtype) -> Packing:
    """What is done with weights of `dtype` on a type of device."""
    if device != "cpu":
        return Packing(packs=False, reason="weights are packed on CPUs only")
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return Packing(packs=False, reason="this torch has no oneDNN")
    x, weight = torch.eye(LEAST_ROWS, dtype=dtype), torch.eye(LEAST_ROWS, dtype=dtype)
    try:
        same = torch.equal(Linear(_pack(weight), None, packed=True)(x), x)
    except (AttributeError, RuntimeError) as error:
        return Packing(packs=False, reason=f"oneDNN does not take it here: {str(error).splitlines()[0]}")
    return Packing(same, "laid out for oneDNN" if same else "oneDNN's products with packed weights are wrong here")


def linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """Of `weight` [out, in], which is copied if it is packed: keep no other reference to it."""
    if packing(weight.device.type, weight.dtype).packs:
        return Linear(_pack(weight), bias, packed=True)
    return Linear(weight, bias)


def load_linear(checkpoint: Checkpoint, prefix: str, outs: dict[str, int], size: int, *, bias: bool) -> Linear:
    """Projections of the same input as one, for fewer and larger products. `outs`: names and widths, in order."""
    weights = [checkpoint.tensor(f"{prefix}.{name}.weight", out, size) for name, out in outs.items()]
    biases = [checkpoint.tensor(f"{prefix}.{name}.bias", out) for name, out in outs.items()] if bias else []
    return linear(_joined(weights), _joined(biases) if biases else None)


def padded_rows(num_rows: int) -> int:
    """The size of batch in which `num_rows` are computed on a CPU: oneDNN makes a kernel for each, in milliseconds."""
    step = LEAST_ROWS if num_rows <= SHAPES_TO else 2 * LEAST_ROWS
    return -(-num_rows // step) * step


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 4 * LEAST_ROWS)  # noqa: SLF001
    return packed


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
