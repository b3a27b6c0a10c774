"""Whether a queue stands, or a burst is being served: what tells an overload from many who came at once.

A burst makes requests late and is gone; under a load that cannot be served they are late without a break. So lateness
counts once it has been the rule for a while (CoDel's interval, Nichols and Jacobson, ACM Queue 2012). CoDel takes the
shortest wait of an interval; here the shortest prompts and the tenants that ask for little are in time whatever the
load, so it is taken by the share that is late. Counts requests; does not know who they are.
"""

from math import exp, inf

RULE = 0.75
"""Share of late requests above which lateness is the rule. A queue that grows makes nearly all late; near capacity long
prompts that short ones overtake are for some seconds most of those whose time is up."""
LASTING = 0.05
"""Share of late requests up to which a load that lasted is over. Far below the other: while the late are refused, it is
few of them that keep the others in time."""


class Standing:
    """Late and timely requests, the older the less they count.

    Args:
        after_s: seconds for which requests must have been late; 0: any late request stands for a load that lasts. A
            request counts by 1/e after as long.

    Attributes:
        after_s: as given.
    """

    def __init__(self, after_s: float) -> None:
        self.after_s = after_s
        self._late = 0.0
        self._timely = 0.0
        self._counted_at_s = 0.0
        self._since_s: float | None = None
        """Since when lateness is the rule; None: it is not."""

    @property
    def begins_s(self) -> float:
        """From when on a late request may be refused; infinite: requests are in time."""
        if not self.after_s:
            return -inf
        return inf if self._since_s is None else self._since_s + self.after_s

    def late(self, now: float) -> None:
        """A request had no first token in time, or was refused because it would have had none."""
        if self.after_s:
            self._fade(now)
            self._late += 1.0
            if self._since_s is None and self._is_above(RULE):
                self._since_s = now

    def timely(self, now: float) -> None:
        """A request had its first token in time."""
        if self.after_s:
            self._fade(now)
            self._timely += 1.0
            if not self._is_above(LASTING if now >= self.begins_s else RULE):
                self._since_s = None

    def gone(self) -> None:
        """Nobody waits for a first token."""
        self._late = self._timely = 0.0
        self._since_s = None

    def _is_above(self, share: float) -> bool:
        return self._late > share * (self._late + self._timely)

    def _fade(self, now: float) -> None:
        left = exp((self._counted_at_s - now) / self.after_s)
        self._late *= left
        self._timely *= left
        self._counted_at_s = now
