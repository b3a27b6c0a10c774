"""Limits as the shared store keeps them: how its scripts are asked, and what their answers mean.

Holds a `LimitBook` that follows the store's answers, which gives every answer its words and goes on alone while the
store is out of reach. Knows items and states; does not know connections.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from policies.admission.limits.algorithms import NS_PER_S
from policies.admission.limits.book import LimitBook
from policies.admission.limits.items import LimitItem
from policies.events import OverLimit, Reserved

HERE = Path(__file__).resolve().parent
SCRIPT = "\n".join((HERE / f"{name}.lua").read_text() for name in ("numbers", "limits", "shares", "batch"))
"""What a batch runs in the store; one script, so that nothing of another replica comes between its parts."""
RULES = {"gcra": 1, "token_bucket": 1, "sliding_log": 2, "gauge": 3}
"""`LimitItem.algorithm` by its number in limits.lua: what is owed decides as well for a bucket as for GCRA."""


class FollowedLimits:
    """What this process knows of limits that it shares.

    Attributes:
        held: units of each gauge, by name, that requests of this process hold: (the item, units).
    """

    def __init__(self) -> None:
        self.held: dict[str, tuple[LimitItem, int]] = {}
        self._book = LimitBook()

    def answered(
        self, request: int, items: Sequence[LimitItem], states: Sequence[list[Any]], now_ns: int, *, taken: bool
    ) -> Reserved | OverLimit:
        """What the store's answer to a `reserve` means; `states`: what it had of each item before.

        Raises:
            RuntimeError: the store decided otherwise than `LimitBook` does.
        """
        for item, state in zip(items, states, strict=True):
            self._book.put(item.name, dumped(item, state, now_ns))
        answer = self.reserve(request, items, now_ns)
        if isinstance(answer, Reserved) != taken:
            raise RuntimeError(f"the shared store and this process disagree on request {request}: {items}, {states}")
        return answer

    def reserve(self, request: int, items: Sequence[LimitItem], now_ns: int) -> Reserved | OverLimit:
        """Decide by what is known here."""
        answer = self._book.reserve(request, items, now_ns)
        if isinstance(answer, Reserved):
            for item in items:
                self._hold(item, item.amount)
        return answer

    def adjust(self, request: int, items: Sequence[tuple[LimitItem, int]], now_ns: int) -> None:
        """What was reserved turned out to be another amount."""
        self._book.adjust(request, items, now_ns)
        for item, actual in items:
            self._hold(item, actual - item.amount)

    def follow_again(self) -> None:
        """The store answers again: what was known here meanwhile counts no more, but for what is held."""
        self._book = LimitBook()

    def _hold(self, item: LimitItem, change: int) -> None:
        if item.algorithm != "gauge":
            return
        _, units = self.held.pop(item.name, (item, 0))
        if units + change > 0:
            self.held[item.name] = (item, units + change)


def row(key: int, item: LimitItem, change: int = 0) -> list[int]:
    """An item as limits.lua reads it; `key`: the number of its key."""
    return [key, RULES[item.algorithm], item.amount, item.limit, item.burst, item.period_s, change]


def dumped(item: LimitItem, state: list[Any], now_ns: int) -> list[Any]:
    """What limits.lua said of an item, as `LimitBook.dump_one` would have it."""
    period_ns = item.period_s * NS_PER_S
    sizes = [item.limit, item.burst]
    match item.algorithm:
        case "gcra":
            owed, rest = state
            return [*sizes, *divmod(now_ns * item.limit + owed * period_ns + rest, item.limit)]
        case "token_bucket":
            owed, rest = state
            return [*sizes, *divmod((item.burst - owed) * period_ns - rest, period_ns), now_ns]
        case "sliding_log":
            return [*sizes, *([s * NS_PER_S + ns, 0, amount] for s, ns, amount in state)]
        case "gauge":
            return [*sizes, sum(state)]
