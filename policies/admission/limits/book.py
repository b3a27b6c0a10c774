"""All limits in one place: what a request takes it takes of all of them, or of none.

Knows items and the time it is given; does not know requests' lives, policies or where its state is kept.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from policies.admission.limits.algorithms import ALGORITHMS, NS_PER_S, Meter
from policies.admission.limits.items import LimitItem, LimitState
from policies.events import OverLimit, Reserved


class LimitBook:
    """What is taken of every limit.

    A limit of which nothing is taken needs no memory; it is forgotten within as many changes as limits are known.
    Times are nanoseconds of the wall clock; a time before the latest one counts as the latest.

    Attributes:
        changed: names of limits that changed, if somebody has put a dict here to hear of them.
    """

    def __init__(self) -> None:
        self.changed: dict[str, None] | None = None
        self._meters: OrderedDict[str, Meter] = OrderedDict()
        self._now_ns = 0

    def reserve(self, request: int, items: Sequence[LimitItem], now_ns: int) -> Reserved | OverLimit:
        """Take every item, or nothing.

        Of several that do not fit the answer names one that never will, else the one with the longest wait; a gauge
        is named where only gauges do not fit, because somebody may leave at any moment.
        """
        now_ns = self._advance(now_ns)
        meters = [self._meter(item, now_ns) for item in items]
        binding: tuple[int, int] | None = None
        unknown = False
        for index, (item, meter) in enumerate(zip(items, meters, strict=True)):
            if item.amount > item.most:
                return self._over(request, items, index, None, now_ns)
            wait_ns = meter.wait_ns(item.amount, now_ns)
            if wait_ns != 0 and (binding is None or (wait_ns or 0) > binding[0]):
                binding, unknown = (wait_ns or 0, index), wait_ns is None
        if binding is not None:
            return self._over(request, items, binding[1], None if unknown else binding[0], now_ns)
        for item, meter in zip(items, meters, strict=True):
            self._meters[item.name] = meter
            meter.take(request, item.amount, now_ns)
            self._note(item.name)
        answer = Reserved(request, self.states(items, now_ns))
        self._forget_full(len(items), now_ns)
        return answer

    def adjust(self, request: int, items: Sequence[tuple[LimitItem, int]], now_ns: int) -> None:
        """Each item was taken as reserved; its actual amount is another. Never refuses."""
        now_ns = self._advance(now_ns)
        for item, actual in items:
            meter = self._meters.get(item.name)
            if meter is None:
                # All that was taken is back already, so there is nothing to give back.
                if actual <= item.amount:
                    continue
                meter = self._meters[item.name] = _new(item)
            meter.correct(request, item.amount, actual, now_ns)
            self._note(item.name)
        self._forget_full(len(items), now_ns)

    def states(self, items: Sequence[LimitItem], now_ns: int) -> tuple[LimitState, ...]:
        """What is left of the limits of these items."""
        now_ns = self._advance(now_ns)
        return tuple(_state(item, self._meter(item, now_ns), now_ns) for item in items)

    def used(self, item: LimitItem, now_ns: int) -> int:
        """Units taken of the limit of this item and not back yet."""
        now_ns = self._advance(now_ns)
        return self._meter(item, now_ns).used(now_ns)

    def dump(self) -> dict[str, Any]:
        """Everything that is taken, in plain values."""
        return {"at_ns": self._now_ns, "limits": {name: self.dump_one(name) for name in self._meters}}

    def dump_one(self, name: str) -> list[Any] | None:
        """One limit as `dump` has it; None: nothing of it is taken."""
        meter = self._meters.get(name)
        return None if meter is None else [meter.limit, meter.burst, *meter.state()]

    def load(self, dumped: dict[str, Any], now_ns: int) -> None:
        """Go on from a `dump`. If the clock has been set back since, its times are moved back with it.

        Raises:
            ValueError: it is not a dump.
        """
        shift_ns = min(0, now_ns - dumped["at_ns"])
        self._now_ns = now_ns
        self._meters.clear()
        for name, one in dumped["limits"].items():
            self.put(name, one, shift_ns)

    def put(self, name: str, dumped: list[Any], shift_ns: int = 0) -> None:
        """One limit is as a `dump_one` has it, with its times moved by so much.

        Raises:
            ValueError: this is not the name of a limit.
        """
        _, period_s, algorithm, *_ = name.rsplit(":", 4)
        if algorithm not in ALGORITHMS:
            raise ValueError(f"{name} is not the name of a limit")
        limit, burst, *state = dumped
        meter = ALGORITHMS[algorithm](limit, burst, int(period_s) * NS_PER_S)
        meter.restore(state, shift_ns)
        self._meters[name] = meter

    def _advance(self, now_ns: int) -> int:
        self._now_ns = max(self._now_ns, now_ns)
        return self._now_ns

    def _meter(self, item: LimitItem, now_ns: int) -> Meter:
        meter = self._meters.get(item.name)
        if meter is None:
            return _new(item)
        if (item.limit, item.burst) != (meter.limit, meter.burst):
            meter.resize(item.limit, item.burst, now_ns)
        return meter

    def _over(
        self, request: int, items: Sequence[LimitItem], index: int, wait_ns: int | None, now_ns: int
    ) -> OverLimit:
        item = items[index]
        return OverLimit(
            request,
            item,
            None if wait_ns is None else wait_ns / NS_PER_S,
            used=self.used(item, now_ns),
            never_fits=item.amount > item.most,
            limits=self.states(items, now_ns),
        )

    def _note(self, name: str) -> None:
        if self.changed is not None:
            self.changed[name] = None

    def _forget_full(self, num_changed: int, now_ns: int) -> None:
        # One more look than there can be new limits, so that what is known does not grow without end.
        for _ in range(min(num_changed + 1, len(self._meters))):
            name, meter = self._meters.popitem(last=False)
            if meter.used(now_ns):
                self._meters[name] = meter
            else:
                self._note(name)

    def check(self) -> None:
        """Assert that no limit has more left than there is."""
        for name, meter in self._meters.items():
            assert meter.used(self._now_ns) >= 0, f"{name} has more left than there is"


def _new(item: LimitItem) -> Meter:
    return ALGORITHMS[item.algorithm](item.limit, item.burst, item.period_s * NS_PER_S)


def _state(item: LimitItem, meter: Meter, now_ns: int) -> LimitState:
    return LimitState(
        item.scope,
        item.subject,
        item.dimension,
        item.limit,
        item.period_s,
        remaining=meter.left(now_ns),
        full_in_s=meter.full_in_ns(now_ns) / NS_PER_S,
    )
