"""What sequences on one executor share: prefixes in the pool, and prefixes that one computes and others wait for.

Owns which prefixes are being computed and who waits for them. Does not know stages or time. Blocks are published when
the step that filled them has ended; whoever needs them before that waits rather than computing the same again, as the
choices of one request do.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from policies.commands import Int32Array
from policies.scheduling.kv_blocks import KvBlocks
from policies.scheduling.state import Sequence


class Hit(NamedTuple):
    """What of a sequence's tokens is in the pool."""

    num_tokens: int
    """Tokens that need no computing: all but the last at most, because its logits are wanted."""
    blocks: list[int]
    """Full blocks to be shared."""
    copied: int | None
    """A block whose beginning comes next. It is copied, because the rest of the copy will be written to."""


NO_HIT = Hit(0, [], None)


class Sharing:
    """Prefixes of one executor's pool.

    Args:
        blocks: the pool.
        copies: the executor can copy a block before a step.

    Attributes:
        num_awaiting: sequences that wait for a prefix.
        num_hits: starts that found a part of their tokens.
        num_hit_tokens: tokens that they found.
    """

    def __init__(self, blocks: KvBlocks, *, copies: bool) -> None:
        self._blocks = blocks
        self._copies = copies
        self._computed_by: dict[bytes, Sequence] = {}
        self._promises: dict[int, list[bytes]] = {}
        """By sequence id: the keys above that are its own."""
        self._awaiting: dict[bytes, list[Sequence]] = {}
        """Those who wait for a key. Who waits no longer has another `awaits`, and is passed over."""
        self.num_awaiting = 0
        self.num_hits = 0
        self.num_hit_tokens = 0

    # --- starting -------------------------------------------------------------------------------------------------

    def look_up(self, sequence: Sequence) -> Hit:
        """What a sequence that is to start would find."""
        prefix, size = sequence.prefix, self._blocks.block_tokens
        if prefix is None or prefix.root is None:
            return NO_HIT
        wanted = sequence.tokens_to_prefill - 1
        blocks: list[int] = []
        for border in range(size, wanted + 1, size):
            key = prefix.key_at(border)
            block = None if key is None else self._blocks.find(key)
            if block is None:
                return Hit(len(blocks) * size, blocks, None)
            blocks.append(block)
        if wanted % size and self._copies:
            key = prefix.key_at(wanted + 1)
            copied = None if key is None else self._blocks.find(key)
            if copied is not None:
                return Hit(wanted, blocks, copied)
        return Hit(len(blocks) * size, blocks, None)

    def to_wait_for(self, sequence: Sequence, hit: Hit) -> bytes | None:
        """The key of the longest prefix that goes on where the hit ends and that others are computing; None: there is
        nothing to wait for. Nobody waits for somebody less important.
        """
        wanted = sequence.tokens_to_prefill - 1
        if not self._computed_by or hit.num_tokens == wanted:
            return None
        last = None
        # The last token is computed in any case: a prefix with it is of use only for those before it in its block.
        for _, key in self._ends(sequence, hit.num_tokens, wanted + bool(wanted % self._blocks.block_tokens)):
            owner = self._computed_by.get(key)
            if owner is None or owner.priority > sequence.priority:
                break
            last = key
        return last

    def wait(self, sequence: Sequence, key: bytes) -> None:
        """A sequence waits for a key."""
        sequence.awaits = key
        self.num_awaiting += 1
        self._awaiting.setdefault(key, []).append(sequence)

    def leave(self, sequence: Sequence) -> None:
        """A sequence waits for no prefix any more."""
        if sequence.awaits is not None:
            sequence.awaits = None
            self.num_awaiting -= 1

    def started(self, sequence: Sequence, hit: Hit) -> None:
        """A sequence computes what it did not find."""
        if hit.num_tokens:
            self.num_hits += 1
            self.num_hit_tokens += hit.num_tokens
        promises = [
            key
            for _, key in self._ends(sequence, hit.num_tokens, sequence.tokens_to_prefill)
            if key not in self._computed_by and self._blocks.find(key) is None
        ]
        if promises:
            self._promises[sequence.id] = promises
            self._computed_by.update(dict.fromkeys(promises, sequence))

    # --- computing ------------------------------------------------------------------------------------------------

    def publish(self, sequence: Sequence, table: Int32Array, first: int, last: int) -> list[Sequence]:
        """A holder's positions `first` to `last - 1` have been computed, in a step that has ended: let others find the
        prefixes that end there. Returns who waited for one of them.
        """
        woken: list[Sequence] = []
        size = self._blocks.block_tokens
        for num_tokens, key in self._ends(sequence, first, last):
            self._blocks.publish(table.item((num_tokens - 1) // size), key)
            if self._computed_by.pop(key, None) is not None:
                woken += self._wake(key)
        return woken

    def withdraw(self, sequence: Sequence) -> list[Sequence]:
        """A sequence will not compute what it was to, or not soon. Returns who waited for it."""
        woken: list[Sequence] = []
        for key in self._promises.pop(sequence.id, ()):
            if self._computed_by.get(key) is sequence:
                del self._computed_by[key]
                woken += self._wake(key)
        return woken

    def _wake(self, key: bytes) -> Iterator[Sequence]:
        for sequence in self._awaiting.pop(key, ()):
            if sequence.awaits == key:
                self.leave(sequence)
                yield sequence

    def _ends(self, sequence: Sequence, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        """Where among positions `first` to `last - 1` a prefix ends that can be found, and its key: at the end of each
        block, and at the end of the prompt.
        """
        prefix, size = sequence.prefix, self._blocks.block_tokens
        if prefix is None or prefix.root is None:
            return
        for num_tokens in range(first - first % size + size, last + 1, size):
            key = prefix.key_at(num_tokens)
            if key is not None:
                yield num_tokens, key
        prompt = sequence.prompt_tokens
        if first < prompt <= last and prompt % size > 1:  # the last token alone is not worth a copy
            key = prefix.key_at(prompt)
            if key is not None:
                yield prompt, key

    def check(self, holders: Iterable[Sequence]) -> None:
        """Raise AssertionError unless whatever is waited for is being computed by somebody who holds blocks."""
        computing = set(holders)
        for key, owner in self._computed_by.items():
            if owner not in computing or key not in self._promises.get(owner.id, ()):
                raise AssertionError(f"sequence {owner.id} computes nothing and others wait for it: {owner.life.story}")
        if not set(self._awaiting) <= set(self._computed_by):
            raise AssertionError("a sequence waits for a prefix that nobody computes")
        waiting = {s.id for key, sequences in self._awaiting.items() for s in sequences if s.awaits == key}
        if len(waiting) != self.num_awaiting:
            raise AssertionError(f"{len(waiting)} sequences wait for a prefix, {self.num_awaiting} are counted")
