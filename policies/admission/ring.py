"""A ring of tenants that take turns, of which only those that are due are looked at.

Owns the order of the ring and the rounds: where the turn is, how often each member was passed, and when each is to be
looked at next. Does not know why somebody is due, nor what a turn is worth.

A round begins and ends at the head, which is no member. Members carry labels that ascend along the ring, so that
(round, label) orders all looks at all members, and a heap finds the next. Where no label is left between two
neighbours, the smallest stretch around them that is sparse enough gets new ones: O(log n) amortised for each that joins
(Bender, Cole, Demaine, Farach-Colton and Zito, "Two simplified algorithms for maintaining order in a list", ESA 2002).
"""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from policies.admission.nodes import Node

LABEL_BITS = 62
CROWDED = 4 / 3
"""A stretch of 2^i labels takes new ones while it has fewer than this to the i-th members."""


class Seat:
    """A member's place in the ring."""

    __slots__ = ("after", "before", "due", "label", "passed", "stamp", "tenant")

    def __init__(self, tenant: Node, label: int, passed: int) -> None:
        self.tenant = tenant
        self.label = label
        self.passed = passed
        """The last round in which it was passed, as far as its tenant knows; `Ring.rounds` tells it of later ones."""
        self.due = passed + 1
        """The round in which it is looked at, if nothing changes until then."""
        self.stamp = 0
        """Of its one valid entry in the heap."""
        self.before: Seat | None = None
        self.after: Seat | None = None


class Ring:
    """The members in order, and when each is due.

    Invariants: labels ascend from the head; every member has one valid entry in the heap; no member's entry is before
    the place where the turn is.
    """

    def __init__(self) -> None:
        self._head = Seat(Node("", None), 0, 0)
        self._seats: dict[Node, Seat] = {}
        self._round = 0
        self._last = self._head
        """Whoever was passed last, in the present round."""
        self._due: list[tuple[int, int, int, Seat]] = []
        """Round, label, stamp and seat; an entry with another stamp than its seat's is no longer valid."""
        self._stamps = 0

    def __iter__(self) -> Iterator[Node]:
        """The members, in the order in which they joined."""
        return iter(self._seats)

    def join(self, tenant: Node) -> None:
        """At the end: it is looked at when everybody else has been."""
        last = self._last
        if _room_after(last) < 2:
            self._spread(last)
        seat = Seat(tenant, last.label + _room_after(last) // 2, self._round)
        seat.before, seat.after = last, last.after
        if last.after is not None:
            last.after.before = seat
        last.after = seat
        self._last = seat
        self._seats[tenant] = seat
        self.look_after(tenant, 0)

    def leave(self, tenant: Node) -> None:
        """It is no member any more."""
        seat = self._seats.pop(tenant)
        before, after = _before(seat), seat.after
        before.after = after
        if after is not None:
            after.before = before
        if self._last is seat:
            self._last = before
        seat.stamp = 0
        self._compact()

    def first(self) -> tuple[Node, int]:
        """Whoever is to be looked at next, and how many rounds after the last in which it knows that it was passed.

        Raises:
            IndexError: the ring is empty.
        """
        while True:
            number, _, stamp, seat = self._due[0]
            if stamp == seat.stamp:
                return seat.tenant, number - seat.passed
            heappop(self._due)

    def turn_to(self, tenant: Node) -> None:
        """It is the first that is due, and now at the front: all before it are passed."""
        seat = self._seats[tenant]
        self._round = self._due[0][0]
        self._last = _before(seat)

    def passed(self, tenant: Node) -> None:
        """It was at the front and is at the end now; when it is due next is to be said."""
        seat = self._seats[tenant]
        seat.passed = self._round
        self._last = seat

    def rounds(self, tenant: Node) -> int:
        """How often it was passed since the last that it knows of."""
        seat = self._seats[tenant]
        return (self._round if seat.label <= self._last.label else self._round - 1) - seat.passed

    def know(self, tenant: Node) -> None:
        """It knows of all rounds so far; when it is due next is to be said."""
        seat = self._seats[tenant]
        seat.passed += self.rounds(tenant)

    def look_after(self, tenant: Node, num_rounds: int) -> None:
        """It need not be looked at while it is passed so many times more, from the last that it knows of."""
        seat = self._seats[tenant]
        seat.due = seat.passed + 1 + num_rounds
        self._enter(seat)
        self._compact()

    def waits(self, tenant: Node) -> int:
        """How many rounds it is not looked at, from the last that it knows of."""
        seat = self._seats[tenant]
        return seat.due - seat.passed - 1

    def _spread(self, seat: Seat) -> None:
        """Make room after a seat."""
        first = last = seat
        num = 1
        for bits in range(1, LABEL_BITS + 1):
            low = seat.label >> bits << bits
            while first.before is not None and first.before.label >= low:
                first, num = first.before, num + 1
            while last.after is not None and last.after.label < low + 2**bits:
                last, num = last.after, num + 1
            step = 2**bits // num
            if num < CROWDED**bits and step > 1:
                self._relabel(first, num, low, step)
                return
        raise OverflowError(f"{len(self._seats)} tenants are more than a ring can order")

    def _relabel(self, first: Seat, num: int, low: int, step: int) -> None:
        each: Seat | None = first
        for index in range(num):
            assert each is not None
            each.label = low + index * step
            if each is not self._head:
                self._enter(each)
            each = each.after

    def _enter(self, seat: Seat) -> None:
        self._stamps += 1
        seat.stamp = self._stamps
        heappush(self._due, (seat.due, seat.label, seat.stamp, seat))

    def _compact(self) -> None:
        # Superseded entries go when they reach the top; this bounds those that never do.
        if len(self._due) > 2 * len(self._seats) + 64:
            self._due = [entry for entry in self._due if entry[2] == entry[3].stamp]
            heapify(self._due)

    def check(self) -> None:
        """Assert the invariants."""
        seat, found = self._head, 0
        while seat.after is not None:
            assert seat.after.before is seat, "a neighbour in the ring does not know its neighbour"
            assert seat.label < seat.after.label, "labels do not ascend along the ring"
            seat, found = seat.after, found + 1
        assert found == len(self._seats), "a member is not in the ring"
        valid = [entry for entry in self._due if entry[2] == entry[3].stamp]
        assert len(valid) == len(self._seats), "a member is never looked at, or twice"
        front = (self._round, self._last.label)
        assert all(entry[:2] > front for entry in valid), "a member was passed when it was due"


def _before(seat: Seat) -> Seat:
    if seat.before is None:
        raise ValueError("the head of a ring is no member")
    return seat.before


def _room_after(seat: Seat) -> int:
    """Distance to the label of whoever is after it."""
    return (2**LABEL_BITS if seat.after is None else seat.after.label) - seat.label
