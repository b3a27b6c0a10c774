"""How far a peer's clock is from ours, by NTP's exchange: four stamps, of which the one with the shortest way counts.

Processes of one Linux host share their monotonic clock: between them nothing is asked, and the difference is 0 exactly.
"""

from collections import deque
from typing import NamedTuple

SAMPLES = 32
"""The newest that are looked at: clocks drift, so that old ones stop to count."""


class Sample(NamedTuple):
    """One exchange."""

    ahead_ns: int
    way_ns: int
    """There and back, the time in between left out: the difference is known to half of it."""


class ClockDifference:
    """Of one peer."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self.ahead_ns = 0
        """The peer's clock minus ours, ns; 0 while they cannot be told apart."""
        self.uncertainty_ns = 0
        """How far off that may be."""

    def exchanged(self, sent_ns: int, received_ns: int, answered_ns: int, returned_ns: int) -> None:
        """A question was sent (our clock), received and answered (the peer's), and its answer returned (ours)."""
        way_ns = (returned_ns - sent_ns) - (answered_ns - received_ns)
        if way_ns < 0:  # no way takes less than nothing: a clock was set
            return
        ahead_ns = ((received_ns - sent_ns) + (answered_ns - returned_ns)) // 2
        self._samples.append(Sample(ahead_ns, way_ns))
        best = min(self._samples, key=lambda sample: sample.way_ns)
        self.uncertainty_ns = best.way_ns // 2 + 1
        # What is within the uncertainty may be nothing, and correcting it would only add an error.
        self.ahead_ns = best.ahead_ns if abs(best.ahead_ns) > self.uncertainty_ns else 0

    def ours(self, stamp_ns: int) -> int:
        """A stamp of the peer's on our clock; 0 stays "not said"."""
        return stamp_ns - self.ahead_ns if stamp_ns else 0
