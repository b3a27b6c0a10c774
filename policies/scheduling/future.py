"""Whether everybody who runs, and one more, would fit to their predicted ends ("future KV").

Owns the arithmetic (prediction specification, section 2; the rule is that of MC-SF, arXiv 2502.07115). Each member
holds `tokens` in this step, one token more in each later one, and all is free after `steps` steps. What is held grows
between two ends, so its peaks are at the ends ("checkpoints"), and nothing else need be looked at.
"""

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


class Future:
    """The members' blocks at each checkpoint, kept as members are added.

    Args:
        tokens: of each member in this step, `(n,)`.
        steps: that each will still run, this one included, `(n,)`, at least 1.
        block_tokens: tokens of a block.
        shared: blocks of each member that are another's too, and are counted there, `(n,)`; None: none.
        used: blocks that are held now and after this step, whoever holds them. What the members do not come to is
            counted to the end.
    """

    def __init__(
        self, tokens: Counts, steps: Counts, *, block_tokens: int, shared: Counts | None = None, used: int = 0
    ) -> None:
        order = np.argsort(-steps, kind="stable")
        self._block_tokens = block_tokens
        self._before = tokens[order] - 1
        self._steps = steps[order]
        """Descending."""
        self._shared = np.zeros(len(steps), np.int64) if shared is None else shared[order]
        self._loads = self._at_ends()
        now = int((-(-tokens // block_tokens)).sum() - self._shared.sum())
        self._others = max(0, used - now)

    def _at_ends(self) -> Counts:
        """Blocks at each member's last step, of all who run as long or longer, `(n,)`."""
        size, steps = self._block_tokens, self._steps
        count = np.arange(1, len(steps) + 1)
        # ceil((x + r) / p) in whole blocks of x and of r, and one or two for what is left of both.
        whole, rest = np.divmod(self._before, size)
        whole_steps, rest_steps = np.divmod(steps, size)
        loads: Counts = np.cumsum(whole - self._shared) + count * whole_steps
        if size > 1:
            with_rest = np.zeros((len(steps), size), np.int64)
            with_rest[np.arange(len(steps)), rest] = 1
            # Entry [i, f]: how many of the first i + 1 have a rest of at least f; none has one of a whole block.
            at_least = with_rest.cumsum(axis=0)[:, ::-1].cumsum(axis=1)[:, ::-1]
            at_least = np.concatenate((at_least, np.zeros((len(steps), 1), np.int64)), axis=1)
            rows = np.arange(len(steps))
            some = np.where(rest_steps > 0, count, at_least[rows, 1])
            loads += some + at_least[rows, size + 1 - np.maximum(rest_steps, 1)]
        # Members that end together: the last of them sees all.
        last = np.searchsorted(-steps, -steps, side="right") - 1
        return loads[last]

    def peak(self) -> int:
        """The most blocks that there will be."""
        return self._others + int(self._loads.max(initial=0))

    def admits(self, tokens: int, steps: int, limit: int, *, shared: int = 0) -> bool:
        """Whether one more member, as in the constructor, would never take the whole past `limit` blocks. Given that
        the members themselves do not come past it by then; if they do, it does not fit either.
        """
        at_end = self._at(steps) + self._blocks(tokens, steps) - shared
        if at_end + self._others > limit:
            return False
        ends = self._before_end(steps)
        grown = -(-(tokens - 1 + self._steps[ends:]) // self._block_tokens) - shared
        return bool((self._loads[ends:] + grown + self._others <= limit).all())

    def add(self, tokens: int, steps: int, *, shared: int = 0) -> None:
        """One more member."""
        at_end = self._at(steps) + self._blocks(tokens, steps) - shared
        ends = self._before_end(steps)
        self._loads[ends:] += -(-(tokens - 1 + self._steps[ends:]) // self._block_tokens) - shared
        self._before = np.insert(self._before, ends, tokens - 1)
        self._steps = np.insert(self._steps, ends, steps)
        self._shared = np.insert(self._shared, ends, shared)
        self._loads = np.insert(self._loads, ends, at_end)

    def _before_end(self, steps: int) -> int:
        """Index of the first member that ends with or before a step."""
        return int(np.searchsorted(-self._steps, -steps, side="left"))

    def _at(self, steps: int) -> int:
        """Blocks at a step, of the members who run as long."""
        there = int(np.searchsorted(-self._steps, -steps, side="right"))
        blocks = -(-(self._before[:there] + steps) // self._block_tokens) - self._shared[:there]
        return int(blocks.sum())

    def _blocks(self, tokens: int, steps: int) -> int:
        return -(-(tokens - 1 + steps) // self._block_tokens)
