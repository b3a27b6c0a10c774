"""Orders: which sequence comes first, by named keys.

Owns the keys' meaning, once for objects (waiting and started sequences) and once for columns (decodes), and the heaps
of the waiting. Keys are ascending, a list is lexicographic, and the release number ends every order, so no tie is left.
"""

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any

import numpy as np

from policies.scheduling.columns import Columns
from policies.scheduling.state import Sequence, SlotArray

Key = tuple[Any, ...]

RESUMED, FRESH = 0, 1
"""Whoever was started before precedes everyone who was not, whatever the keys."""

OBJECT_KEYS: dict[str, Callable[[Sequence], float]] = {
    "arrival": lambda s: s.arrived_s,
    "admission": lambda s: s.admitted or inf,
    "prompt_tokens": lambda s: s.tokens_to_prefill,
    "class_priority": lambda s: s.priority,
    "last_schedulable_time": lambda _: inf,
}
"""A prompt has no token deadline: it ties under `last_schedulable_time`."""

COLUMN_KEYS: dict[str, Callable[[Columns], Any]] = {
    "arrival": lambda c: c.arrived_s,
    "admission": lambda c: c.admitted,
    "prompt_tokens": lambda c: c.prompt_tokens,
    "class_priority": lambda c: c.priority,
    "last_schedulable_time": lambda c: c.deadline_s,
}


def waiting_key(sequence: Sequence, order: tuple[str, ...]) -> Key:
    """Sort key of a sequence without blocks."""
    if sequence.resumed:
        return (RESUMED, sequence.arrived_s, sequence.number)
    return (FRESH, *[OBJECT_KEYS[name](sequence) for name in order], sequence.number)


def started_key(sequence: Sequence, order: tuple[str, ...]) -> Key:
    """Sort key of a started prefill; comparable with `waiting_key`."""
    return (FRESH, *[OBJECT_KEYS[name](sequence) for name in order], sequence.number)


def sort_slots(columns: Columns, slots: SlotArray, order: tuple[str, ...]) -> SlotArray:
    """The slots of decodes, first come first."""
    keys = [columns.number.take(slots)]
    keys += [COLUMN_KEYS[name](columns).take(slots) for name in reversed(order)]
    return slots[np.lexsort(keys)]


class Waiting:
    """The waiting sequences of one executor: a heap for each distinct order, with lazy deletion.

    A sequence is in all heaps or in none (`ticket` 0); `carried` ones, which no stage could finish, have their own.
    """

    def __init__(self) -> None:
        self._heaps: dict[tuple[str, ...], list[Key]] = {}
        self._carried: list[Key] = []
        self._live: dict[int, Sequence] = {}
        self._tickets = 0

    def __len__(self) -> int:
        return len(self._live)

    def rebuild(self, orders: Iterable[tuple[str, ...]], is_carried: Callable[[Sequence], bool]) -> None:
        """Order everyone anew, under a new policy; O(waiting)."""
        sequences = list(self._live.values())
        self._heaps = {order: [] for order in orders}
        self._carried = []
        for sequence in sequences:
            if is_carried(sequence):
                self._carried.append((*waiting_key(sequence, ("arrival",)), sequence.ticket, sequence))
            else:
                for order, heap in self._heaps.items():
                    heap.append((*waiting_key(sequence, order), sequence.ticket, sequence))
        heapify(self._carried)
        for heap in self._heaps.values():
            heapify(heap)

    def add(self, sequence: Sequence, *, carried: bool) -> None:
        """Let a sequence wait."""
        self._tickets += 1
        sequence.ticket = self._tickets
        self._live[sequence.id] = sequence
        if carried:
            heappush(self._carried, (*waiting_key(sequence, ("arrival",)), sequence.ticket, sequence))
        else:
            for order, heap in self._heaps.items():
                heappush(heap, (*waiting_key(sequence, order), sequence.ticket, sequence))

    def remove(self, sequence: Sequence) -> None:
        """A sequence waits no more; its entries are dropped when they come up."""
        del self._live[sequence.id]
        sequence.ticket = 0
        for heap in (*self._heaps.values(), self._carried):
            if len(heap) > 2 * len(self._live) + 64:
                heap[:] = [entry for entry in heap if entry[-1].ticket == entry[-2]]
                heapify(heap)

    def first(self, order: tuple[str, ...]) -> Sequence | None:
        """Who comes first under this order."""
        return self._top(self._heaps[order])

    def first_carried(self) -> Sequence | None:
        """Who comes first of those that no stage could finish."""
        return self._top(self._carried)

    @staticmethod
    def _top(heap: list[Key]) -> Sequence | None:
        while heap:
            ticket, sequence = heap[0][-2:]
            if sequence.ticket == ticket:
                return sequence  # type: ignore[no-any-return]
            heappop(heap)
        return None
