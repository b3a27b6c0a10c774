"""Arrays from the host to the device, without waiting for it.

A copy from ordinary memory waits until the device has done all it was given: the host would fall behind. So arrays go
through pinned memory, which torch keeps until the copy is done, and all of a step's together, as one copy.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT = 16
"""Bytes; kernels read vectors of this size."""


class Place(NamedTuple):
    """Where an array is in the bytes sent."""

    start: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def layout(arrays: Sequence[NDArray[Any]]) -> list[Place]:
    """Places one after the other, each aligned; arrays of the same shapes and types always get the same."""
    places, start = [], 0
    for array in arrays:
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        places.append(Place(start, array.nbytes, dtype, array.shape))
        start += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    return places


def pack(arrays: Sequence[NDArray[Any]], places: list[Place], into: Tensor) -> None:
    """Write the arrays to their places in `into`, host bytes [at least `extent(places)`] uint8."""
    target = into.numpy()
    for array, place in zip(arrays, places, strict=True):
        target[place.start : place.start + place.size] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def unpack(packed: Tensor, places: list[Place]) -> list[Tensor]:
    """The arrays in packed bytes, as views of them."""
    return [packed[p.start : p.start + p.size].view(p.dtype).view(p.shape) for p in places]


def extent(places: list[Place]) -> int:
    """Bytes that hold all places."""
    return max((place.start + place.size for place in places), default=0)


def to_device(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """The arrays as tensors on `device`. On a CPU they share the arrays' memory."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    places = layout(arrays)
    pinned = torch.empty(extent(places), dtype=torch.uint8, pin_memory=True)
    pack(arrays, places, pinned)
    return unpack(pinned.to(device, non_blocking=True), places)


def on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """As `to_device`, of one array."""
    return to_device([array], device)[0]


class Landing:
    """Tensors that stay where they are while their contents change: what a captured graph reads."""

    def __init__(self, arrays: Sequence[NDArray[Any]], device: torch.device) -> None:
        self._places = layout(arrays)
        self._packed = torch.zeros(extent(self._places), dtype=torch.uint8, device=device)
        self.tensors = unpack(self._packed, self._places)
        self.fill(arrays)

    def fill(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Send new contents, of the same shapes and types, after all that the device was given before."""
        elsewhere = self._packed.device.type != "cpu"
        staged = torch.empty(len(self._packed), dtype=torch.uint8, pin_memory=elsewhere)
        pack(arrays, self._places, staged)
        self._packed.copy_(staged, non_blocking=elsewhere)
