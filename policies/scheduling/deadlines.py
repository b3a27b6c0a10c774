"""When a decode must be planned to keep its class's TBT (SLAI, Eq. 8).

Owns the formula: deadline = end of the step that made the last token + TBT - theta x mean step time. Theta follows the
use of the KV pool at the moment a deadline is set; deadlines already set are not revised.
"""

from msgspec import Struct


class OffsetRule(Struct, frozen=True):
    """Theta, in steps, by the share of KV blocks held."""

    below: float
    above: float
    kv_threshold: float

    def theta(self, kv_use: float) -> float:
        """Steps before its deadline at which a decode becomes due."""
        return self.above if kv_use >= self.kv_threshold else self.below


def base_s(ended_at_s: float, theta: float, step_time_s: float) -> float:
    """What to add a class's TBT to: the last schedulable time of a class with TBT 0."""
    return ended_at_s - theta * step_time_s
