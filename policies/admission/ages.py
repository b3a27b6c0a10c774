"""Who of those that wait has waited longest, since it came first and not since it was put in this queue.

Requests join in the order in which they come, but for those that had waited with an admission process that was lost.
"""

from heapq import heappop, heappush

from policies.admission.fairness import FairQueue
from policies.admission.nodes import Queued


class Ages:
    """Reads a queue, oldest first, and remembers who came to it late."""

    def __init__(self, queue: FairQueue) -> None:
        self._queue = queue
        self._late: list[tuple[float, int, int]] = []
        """(since when it waits, number, request): a heap; what left is dropped when it is next."""

    def joined(self, queued: Queued, now: float) -> None:
        """A request waits; what is still listed and gone goes, once that is most of the list."""
        if queued.arrived_at_s < now:
            heappush(self._late, (queued.arrived_at_s, queued.number, queued.request))
            if len(self._late) > 2 * len(self._queue.waiting) + 64:
                self._late = sorted(entry for entry in self._late if self._waits(entry) is not None)

    def oldest(self) -> Queued | None:
        """Who has waited longest; None: nothing waits."""
        late = None
        while self._late and (late := self._waits(self._late[0])) is None:
            heappop(self._late)
        first = next(iter(self._queue.waiting.values()), None)
        # All that joined after the first and came when they joined have waited less than it.
        return first if late is None or first is None or first.arrived_at_s <= late.arrived_at_s else late

    def check(self) -> None:
        """Assert that nobody has waited longer than the oldest."""
        oldest = self.oldest()
        since_s = [queued.arrived_at_s for queued in self._queue.waiting.values()]
        assert (oldest is None) == (not since_s), "something waits and nothing is the oldest"
        assert oldest is None or oldest.arrived_at_s == min(since_s), "somebody has waited longer than the oldest"

    def _waits(self, entry: tuple[float, int, int]) -> Queued | None:
        """The request of an entry, unless it is gone, perhaps to come again since."""
        _, number, request = entry
        queued = self._queue.waiting.get(request)
        return queued if queued is not None and queued.number == number else None
