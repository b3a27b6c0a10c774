"""Keys and values of all layers in blocks. Who holds which block is the scheduler's business."""

import mmap

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.config import ModelConfig
from engine.memory import SCRATCH_BLOCKS
from engine.transfer import to_device


class KvCache:
    """For each layer keys and values [num_blocks + 1, block_tokens, kv_heads, head_dim].

    On a CPU the memory is zero pages that cost nothing until a block is first written. Zeros also matter elsewhere: a
    masked slot has weight 0, and 0 times a stray NaN would not be 0.
    """

    def __init__(
        self, config: ModelConfig, num_blocks: int, block_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.block_tokens = block_tokens
        self.num_blocks = num_blocks
        shape = (config.num_layers, 2, num_blocks + SCRATCH_BLOCKS, block_tokens, config.num_kv_heads, config.head_dim)
        if device.type == "cpu":
            pool = torch.from_numpy(_zero_pages(int(np.prod(shape)) * dtype.itemsize)).view(dtype).view(shape)
        else:
            pool = torch.zeros(shape, dtype=dtype, device=device)
        self._pool = pool
        self.keys = [layer[0] for layer in pool]
        self.values = [layer[1] for layer in pool]

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store [tokens, kv_heads, head_dim] at `slots` [tokens], where slot = block * block_tokens + offset."""
        self.keys[layer].flatten(0, 1).index_copy_(0, slots, keys)
        self.values[layer].flatten(0, 1).index_copy_(0, slots, values)

    def copy(self, copied: NDArray[np.int32], copies: NDArray[np.int32]) -> None:
        """Copy the blocks `copied` [n] to `copies` [n], numbered as the scheduler does, in every layer. All are read
        before any is written.
        """
        source, target = to_device([copied + SCRATCH_BLOCKS, copies + SCRATCH_BLOCKS], self._pool.device)
        self._pool[:, :, target] = self._pool[:, :, source]


def _zero_pages(num_bytes: int) -> NDArray[np.uint8]:
    """Straight from the kernel: malloc may have memory of this size that it would have to clear, all of it."""
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)
