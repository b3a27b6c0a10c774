"""Counts by a name that comes from outside, as tenants' names do, in a bounded number of series."""

from collections.abc import Mapping
from heapq import nsmallest

OTHER = "other"
NUM_SHOWN = 20


class Largest:
    """The names with the most have a series each, all others share `other`.

    What a name gains counts where the name is shown at that moment. So every series only grows, as a counter must,
    though names come and go; the series of one that left for `other` goes on where it was when it returns.

    Args:
        num_shown: names with a series of their own.
    """

    def __init__(self, num_shown: int = NUM_SHOWN) -> None:
        self._num_shown = num_shown
        self._seen: dict[str, float] = {}
        self._own: dict[str, float] = {}
        self._other = 0.0

    def follow(self, totals: Mapping[str, float]) -> dict[str, float]:
        """What the series are, now that these are the totals by name since the start; one that fell did not gain."""
        seen = self._seen
        gains = {name: total - seen.get(name, 0.0) for name, total in totals.items() if total > seen.get(name, 0.0)}
        seen.update({name: totals[name] for name in gains})
        names = (name for name in seen if name != OTHER)
        shown = nsmallest(self._num_shown, names, key=lambda name: (-seen[name], name))
        own = {name: self._own.get(name, 0.0) + gains.pop(name, 0.0) for name in shown}
        self._own.update(own)
        self._other += sum(gains.values())
        return {**own, OTHER: self._other} if len(seen) > len(shown) else own
