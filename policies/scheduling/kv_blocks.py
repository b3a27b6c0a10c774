"""Blocks of one KV pool: which are free, and how many a number of tokens needs.

Owns block numbers. Does not know sequences: whoever takes blocks keeps them and gives them back.
"""


class KvBlocks:
    """A pool of `num_blocks` blocks of `block_tokens` tokens, numbered from 0."""

    __slots__ = ("_free", "block_tokens", "num_blocks")

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Blocks nobody holds."""
        return len(self._free)

    @property
    def use(self) -> float:
        """Share of blocks held, 0 to 1."""
        return 1.0 - len(self._free) / self.num_blocks if self.num_blocks else 1.0

    def blocks_of(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_tokens)

    def take(self, count: int) -> list[int]:
        """Remove `count` blocks from the free ones; the caller has checked `num_free`."""
        if not count:
            return []
        taken = self._free[-count:]
        del self._free[-count:]
        return taken

    def give_back(self, blocks: list[int]) -> None:
        """Return blocks; they may be taken again at once, because an executor runs its steps in order."""
        self._free += blocks

    def check(self, held: list[int]) -> None:
        """Raise AssertionError unless `held` and the free blocks are together every block exactly once."""
        everyone = sorted([*self._free, *held])
        if everyone != list(range(self.num_blocks)):
            raise AssertionError(f"{len(self._free)} free and {len(held)} held blocks are not 0..{self.num_blocks - 1}")
