"""Blocks of one KV pool: which are free, who shares which, and what the filled ones hold.

Owns block numbers, and the names ("keys") under which filled blocks can be found again. Does not know sequences:
whoever takes blocks keeps them and gives them back; nor does it know what a key stands for.
"""

from collections import Counter, OrderedDict

import numpy as np

from policies.commands import Int32Array


class KvBlocks:
    """A pool of `num_blocks` blocks of `block_tokens` tokens, numbered from 0.

    A block is blank, or held by one, or published: then any number may hold it, and when nobody does it is idle: free
    like a blank one, but what it holds can be found until it is taken. Idle blocks are taken when no blank one is left,
    the one that was held longest ago first.

    Attributes:
        num_free: blocks nobody holds, blank or idle.
        num_evictions: idle blocks taken since start.
    """

    __slots__ = (
        "_blank",
        "_block_of",
        "_idle",
        "_key_of",
        "_more_keys",
        "_num_blank",
        "_num_holders",
        "block_tokens",
        "num_blocks",
        "num_evictions",
        "num_free",
    )

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.num_free = num_blocks
        self.num_evictions = 0
        self._num_blank = num_blocks
        self._blank = np.arange(num_blocks - 1, -1, -1, dtype=np.int32)
        """A stack; `[:_num_blank]` counts."""
        self._num_holders: dict[int, int] = {}
        """Of each published block."""
        self._key_of: dict[int, bytes] = {}
        self._more_keys: dict[int, list[bytes]] = {}
        """Of the few published blocks that were given another key after their first."""
        self._block_of: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Least recently held first. Not a dict: finding its first key after many deletions takes longer and longer."""

    @property
    def use(self) -> float:
        """Share of blocks held, 0 to 1."""
        return 1.0 - self.num_free / self.num_blocks if self.num_blocks else 1.0

    def blocks_of(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_tokens)

    def take(self, count: int) -> Int32Array:
        """Remove `count` blocks from the free ones; the caller has checked `num_free`."""
        top = self._num_blank
        if count > top:
            self._evict(count - top)
            top = count
        self._num_blank = top - count
        self.num_free -= count
        return self._blank[top - count : top].copy()

    def give_back(self, blocks: Int32Array) -> None:
        """A holder lets go of its blocks, given in the order of its tokens. Those that nobody else holds may be taken
        again at once, because an executor runs its steps in order.
        """
        if self._num_holders:
            blocks = self._let_go(blocks)
        top = self._num_blank
        self._num_blank = top + len(blocks)
        self.num_free += len(blocks)
        self._blank[top : self._num_blank] = blocks

    # --- sharing --------------------------------------------------------------------------------------------------

    def find(self, key: bytes) -> int | None:
        """The block published under this key."""
        return self._block_of.get(key)

    def publish(self, block: int, key: bytes) -> None:
        """Let a held block be found. Where another was published under the key before, that one stays: both hold the
        same, and one is enough.
        """
        if key in self._block_of:
            return
        self._block_of[key] = block
        if block in self._key_of:
            self._more_keys.setdefault(block, []).append(key)
        else:
            self._key_of[block] = key
            self._num_holders[block] = 1

    def num_idle(self, blocks: list[int]) -> int:
        """How many of these published blocks nobody holds."""
        return sum(block in self._idle for block in blocks) if self._idle else 0

    def share(self, blocks: list[int]) -> None:
        """One more holder for each of these published blocks."""
        for block in blocks:
            num_holders = self._num_holders[block]
            if not num_holders:
                del self._idle[block]
                self.num_free -= 1
            self._num_holders[block] = num_holders + 1

    def touch(self, block: int) -> None:
        """A published block was read: if it is idle, it is the last to be taken."""
        if block in self._idle:
            self._idle.move_to_end(block)

    def _let_go(self, blocks: Int32Array) -> Int32Array:
        """Returns the blocks that are blank now."""
        blank = []
        # The end of a prefix is of no use without its beginning, so it is the first to be taken.
        for block in reversed(blocks.tolist()):
            num_holders = self._num_holders.get(block)
            if num_holders is None:
                blank.append(block)
                continue
            self._num_holders[block] = num_holders - 1
            if num_holders == 1:
                self._idle[block] = None
                self.num_free += 1
        return np.array(blank[::-1], np.int32)

    def _evict(self, count: int) -> None:
        """Make the `count` longest idle blocks blank."""
        for _ in range(count):
            block, _ = self._idle.popitem(last=False)
            del self._num_holders[block]
            for key in (self._key_of.pop(block), *self._more_keys.pop(block, ())):
                del self._block_of[key]
            self._blank[self._num_blank] = block
            self._num_blank += 1
        self.num_evictions += count

    def check(self, held: list[int]) -> None:
        """Raise AssertionError unless the blocks are accounted for.

        Args:
            held: the blocks of every holder, one after another; a block of two holders is in it twice.
        """
        holders = Counter(held)
        blank = self._blank[: self._num_blank].tolist()
        everyone = sorted([*blank, *self._idle, *holders])
        if everyone != list(range(self.num_blocks)):
            raise AssertionError(
                f"{len(blank)} blank, {len(self._idle)} idle and {len(holders)} held blocks are not "
                f"0..{self.num_blocks - 1}"
            )
        if self.num_free != len(blank) + len(self._idle):
            raise AssertionError(f"{self.num_free} blocks count as free, {len(blank) + len(self._idle)} are")
        for block, count in holders.items():
            if count != self._num_holders.get(block, 1):
                raise AssertionError(f"block {block} has {count} holders and counts {self._num_holders[block]}")
        if set(self._idle) != {block for block, count in self._num_holders.items() if not count}:
            raise AssertionError("the idle blocks are not the published ones that nobody holds")
        named = {key: block for block, key in self._key_of.items()}
        named |= {key: block for block, keys in self._more_keys.items() for key in keys}
        if named != self._block_of or self._key_of.keys() != self._num_holders.keys():
            raise AssertionError("the keys of the published blocks are not those by which blocks are found")
