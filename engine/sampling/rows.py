"""Settings of the rows of one step, as columns on the host, and their way to the device."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.transfer import on_device


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


def column(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """One value a row, as [rows, 1]."""
    return on_device(values, device).unsqueeze(-1)
