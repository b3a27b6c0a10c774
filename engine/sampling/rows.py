"""Settings of the rows of one step, as columns on the host, and their way to the device."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class SamplingRows(NamedTuple):
    """Sampling settings of the rows of one step, one entry a row."""

    temperatures: NDArray[np.float32]
    top_ps: NDArray[np.float32]
    top_ks: NDArray[np.int64]
    """0: all tokens."""
    min_ps: NDArray[np.float32]
    seeds: NDArray[np.int64]
    output_positions: NDArray[np.int64]

    def at(self, chosen: "NDArray[np.intp] | slice") -> "SamplingRows":
        """Some of the rows."""
        return SamplingRows._make(values[chosen] for values in self)


def on_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """A copy on the device that nobody waits for; on a CPU the array's own memory."""
    host = torch.from_numpy(array)
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


def column(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """One value a row, as [rows, 1]."""
    return on_device(values, device).unsqueeze(-1)
