"""Orders: which sequence comes first, by named keys.

Owns the keys' meaning, once for objects (waiting and started sequences) and once for columns (decodes), and the heaps
of the waiting. Keys are ascending, a list is lexicographic, and the release number ends every order, so no tie is left.
`aged` alone changes with time: `aged_since_s` is the latest arrival that is aged now.
"""

from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from policies.scheduling.columns import Columns
from policies.scheduling.state import Sequence, SlotArray

Key = tuple[Any, ...]

RESUMED, FRESH = 0, 1
"""Whoever was started before precedes everyone who was not, whatever the keys."""

AGED = "aged"
NEVER_S = -inf
"""As `aged_since_s`: nobody is aged."""

OBJECT_KEYS: dict[str, Callable[[Sequence, float], float]] = {
    "arrival": lambda s, _: s.arrived_s,
    "admission": lambda s, _: s.admitted or inf,
    "prompt_tokens": lambda s, _: s.tokens_to_prefill,
    "remaining_prompt_tokens": lambda s, _: s.prompt_left,
    "class_priority": lambda s, _: s.priority,
    "last_schedulable_time": lambda _s, _: inf,
    AGED: lambda s, aged_since_s: s.arrived_s if s.arrived_s <= aged_since_s else inf,
    "predicted_output": lambda s, _: s.estimate,
    "most_predicted_output": lambda s, _: -s.estimate,
    "predicted_kv_volume": lambda s, _: s.estimate * s.prompt_tokens + s.estimate * (s.estimate + 1) // 2,
}
"""A prompt has no token deadline: it ties under `last_schedulable_time`."""

COLUMN_KEYS: dict[str, Callable[[Columns, float], NDArray[Any]]] = {
    "arrival": lambda c, _: c.arrived_s,
    "admission": lambda c, _: c.admitted,
    "prompt_tokens": lambda c, _: c.prompt_tokens,
    "class_priority": lambda c, _: c.priority,
    "last_schedulable_time": lambda c, _: c.deadline_s,
    AGED: lambda c, aged_since_s: np.where(c.arrived_s <= aged_since_s, c.arrived_s, inf),
    "predicted_output": lambda c, _: c.estimates(),
    "most_predicted_output": lambda c, _: -c.estimates(),
    "predicted_kv_volume": lambda c, _: c.volumes(),
}


WaitingKey = Callable[[Sequence, tuple[str, ...], float], Key]
"""Sort key of a sequence without blocks; comparable with `started_key`."""


def resumed_first(sequence: Sequence, order: tuple[str, ...], aged_since_s: float) -> Key:
    """Whoever was started before comes before all others, by arrival."""
    if sequence.resumed:
        return (RESUMED, sequence.arrived_s, sequence.number)
    return started_key(sequence, order, aged_since_s)


def started_key(sequence: Sequence, order: tuple[str, ...], aged_since_s: float) -> Key:
    """Sort key of a started prefill."""
    return (FRESH, *[OBJECT_KEYS[name](sequence, aged_since_s) for name in order], sequence.number)


REQUEUES: dict[str, WaitingKey] = {"head": resumed_first, "ordered": started_key}


def sort_slots(columns: Columns, slots: SlotArray, order: tuple[str, ...], aged_since_s: float) -> SlotArray:
    """The slots of decodes, first come first."""
    keys = [columns.number.take(slots)]
    keys += [COLUMN_KEYS[name](columns, aged_since_s).take(slots) for name in reversed(order)]
    return slots[np.lexsort(keys)]


class Line(NamedTuple):
    """Who waits for a stage: in which order, and with how many tokens to prefill at most."""

    order: tuple[str, ...]
    longest: int


class Waiting:
    """The waiting sequences of one executor: a heap for each distinct line, with lazy deletion.

    A sequence is in every heap that it is short enough for, or in none (`ticket` 0); `carried` ones, which no stage
    could finish, have their own.
    Whoever ages gets a second entry in the heaps that order by `aged`. It comes before the first one, so that the first
    one need not be found; both are dropped alike.
    """

    def __init__(self) -> None:
        self._heaps: dict[Line, list[Key]] = {}
        self._aging: list[tuple[Line, list[Key]]] = []
        """Those of the heaps that order by `aged`."""
        self._carried: list[Key] = []
        self._young: list[Key] = []
        """Who is yet to age, the earliest arrival first; empty where no heap orders by `aged`."""
        self._live: dict[int, Sequence] = {}
        self._tickets = 0
        self.key: WaitingKey = resumed_first

    def __len__(self) -> int:
        return len(self._live)

    def rebuild(self, lines: Iterable[Line], key: WaitingKey, is_carried: Callable[[Sequence], bool]) -> None:
        """Order everyone anew, under a new policy; O(waiting)."""
        self.key = key
        sequences = list(self._live.values())
        self._heaps = {line: [] for line in lines}
        self._aging = [(line, heap) for line, heap in self._heaps.items() if AGED in line.order]
        self._carried, self._young = [], []
        for sequence in sequences:
            for heap, entry in self._entries(sequence, carried=is_carried(sequence)):
                heap.append(entry)
        for heap in (*self._heaps.values(), self._carried, self._young):
            heapify(heap)

    def add(self, sequence: Sequence, *, carried: bool) -> None:
        """Let a sequence wait."""
        self._tickets += 1
        sequence.ticket = self._tickets
        self._live[sequence.id] = sequence
        for heap, entry in self._entries(sequence, carried=carried):
            heappush(heap, entry)

    def remove(self, sequence: Sequence) -> None:
        """A sequence waits no more; its entries are dropped when they come up."""
        del self._live[sequence.id]
        sequence.ticket = 0
        for heap in (*self._heaps.values(), self._carried, self._young):
            if len(heap) > 4 * len(self._live) + 64:  # the aged have two entries each
                heap[:] = [entry for entry in heap if entry[-1].ticket == entry[-2]]
                heapify(heap)

    def first(self, line: Line, aged_since_s: float) -> Sequence | None:
        """Who comes first in this line. `aged_since_s` never goes back under one policy."""
        while self._young and self._young[0][0] <= aged_since_s:
            ticket, sequence = heappop(self._young)[-2:]
            if sequence.ticket == ticket:
                for aging, heap in self._aging:
                    if sequence.prompt_left <= aging.longest:
                        heappush(heap, (*self.key(sequence, aging.order, aged_since_s), ticket, sequence))
        return self._top(self._heaps[line])

    def first_carried(self) -> Sequence | None:
        """Who comes first of those that no stage could finish."""
        return self._top(self._carried)

    def _entries(self, sequence: Sequence, *, carried: bool) -> Iterator[tuple[list[Key], Key]]:
        """Where a sequence that begins to wait is entered, and as what: as one who is young."""
        ticket = sequence.ticket
        if carried:
            yield self._carried, (*resumed_first(sequence, ("arrival",), NEVER_S), ticket, sequence)
            return
        for line, heap in self._heaps.items():
            if sequence.prompt_left <= line.longest:
                yield heap, (*self.key(sequence, line.order, NEVER_S), ticket, sequence)
        if self._aging and self.key(sequence, (), NEVER_S)[0] == FRESH:
            yield self._young, (sequence.arrived_s, sequence.number, ticket, sequence)

    @staticmethod
    def _top(heap: list[Key]) -> Sequence | None:
        while heap:
            ticket, sequence = heap[0][-2:]
            if sequence.ticket == ticket:
                return sequence  # type: ignore[no-any-return]
            heappop(heap)
        return None
