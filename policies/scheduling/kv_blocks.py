"""Blocks of one KV pool: which are free, who shares which, and what the filled ones hold.

Owns block numbers, and the names ("keys") under which filled blocks can be found again. Does not know sequences:
whoever takes blocks keeps them and gives them back; nor does it know what a key stands for.
"""

from collections import Counter, OrderedDict

import numpy as np

from policies.commands import Int32Array


class _Published:
    """A block that can be found: its keys, and how many hold it."""

    __slots__ = ("keys", "num_holders")

    def __init__(self, key: bytes) -> None:
        self.keys = [key]
        self.num_holders = 1


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
        "_num_blank",
        "_published",
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
        self._published: dict[int, _Published] = {}
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
        if self._published:
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
        published = self._published.get(block)
        if published is None:
            self._published[block] = _Published(key)
        else:
            published.keys.append(key)

    def num_idle(self, blocks: list[int]) -> int:
        """How many of these published blocks nobody holds."""
        return sum(block in self._idle for block in blocks) if self._idle else 0

    def share(self, blocks: list[int]) -> None:
        """One more holder for each of these published blocks."""
        for block in blocks:
            published = self._published[block]
            if not published.num_holders:
                del self._idle[block]
                self.num_free -= 1
            published.num_holders += 1

    def touch(self, block: int) -> None:
        """A published block was read: if it is idle, it is the last to be taken."""
        if block in self._idle:
            self._idle.move_to_end(block)

    def _let_go(self, blocks: Int32Array) -> Int32Array:
        """Returns the blocks that are blank now."""
        blank = []
        # The end of a prefix is of no use without its beginning, so it is the first to be taken.
        for block in reversed(blocks.tolist()):
            published = self._published.get(block)
            if published is None:
                blank.append(block)
                continue
            published.num_holders -= 1
            if not published.num_holders:
                self._idle[block] = None
                self.num_free += 1
        return np.array(blank[::-1], np.int32)

    def _evict(self, count: int) -> None:
        """Make the `count` longest idle blocks blank."""
        for _ in range(count):
            block, _ = self._idle.popitem(last=False)
            for key in self._published.pop(block).keys:
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
            published = self._published.get(block)
            if count != (published.num_holders if published is not None else 1):
                raise AssertionError(f"block {block} has {count} holders and counts others")
        if any(published.num_holders for block, published in self._published.items() if block not in holders):
            raise AssertionError("a published block that nobody holds counts holders")
        named = {key: block for block, published in self._published.items() for key in published.keys}
        if named != self._block_of or not set(self._idle) <= set(self._published):
            raise AssertionError("the keys of the published blocks are not those by which blocks are found")
