"""Blocks of one KV pool: which are free, and how many a number of tokens needs.

Owns block numbers. Does not know sequences: whoever takes blocks keeps them and gives them back.
"""

import numpy as np

from policies.commands import Int32Array


class KvBlocks:
    """A pool of `num_blocks` blocks of `block_tokens` tokens, numbered from 0.

    Attributes:
        num_free: blocks nobody holds.
    """

    __slots__ = ("_free", "block_tokens", "num_blocks", "num_free")

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.num_free = num_blocks
        self._free = np.arange(num_blocks - 1, -1, -1, dtype=np.int32)
        """A stack; `[:num_free]` counts."""

    @property
    def use(self) -> float:
        """Share of blocks held, 0 to 1."""
        return 1.0 - self.num_free / self.num_blocks if self.num_blocks else 1.0

    def blocks_of(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_tokens)

    def take(self, count: int) -> Int32Array:
        """Remove `count` blocks from the free ones; the caller has checked `num_free`."""
        top = self.num_free
        self.num_free = top - count
        return self._free[top - count : top].copy()

    def give_back(self, blocks: Int32Array) -> None:
        """Return blocks; they may be taken again at once, because an executor runs its steps in order."""
        top = self.num_free
        self.num_free = top + len(blocks)
        self._free[top : self.num_free] = blocks

    def check(self, held: list[int]) -> None:
        """Raise AssertionError unless `held` and the free blocks are together every block exactly once."""
        everyone = sorted([*self._free[: self.num_free].tolist(), *held])
        if everyone != list(range(self.num_blocks)):
            raise AssertionError(f"{self.num_free} free and {len(held)} held blocks are not 0..{self.num_blocks - 1}")
