"""Who has been charged what for the requests in flight.

Knows charges, counts and sequences of released requests; does not know queues or time. One record for each request in
flight; every output token is charged exactly once, and the final count decides.
"""

from collections.abc import Iterable, Iterator

from msgspec import Struct

from policies.admission.cost import Cost
from policies.admission.fairness import FairQueue
from policies.admission.nodes import Leaf, Node, Queued
from policies.admission.window import Place, Window
from policies.commands import Settle

LOST = "scheduler_lost"
"""The outcome of what a scheduler had that is gone, or that it does not have."""
NOTHING_DONE = ("error", "refused", LOST)
"""Outcomes that give the prompt back when no token was produced: the failure was ours."""


class Charge(Struct, gc=False, eq=False):
    """One released request's charges."""

    request: int
    leaf: Leaf
    tenant: str
    project: str
    key: str
    slo_class: str
    weight: float
    """Of its tenant as it was at release."""
    cost: Cost
    """In force at release."""
    prompt_tokens: int
    num_choices: int
    max_output_tokens: int
    """Of one choice."""
    predicted_tokens: int
    """Output that was charged at release, over all choices."""
    true_tokens: int
    """Output that it will have, over all choices, where a replay knows it."""
    place: Place
    """What it takes of the window."""
    room_tokens: int
    """Output that its place in the window has room for, over all choices."""
    output_price: float | None
    """Of every output token; None: they differ."""
    top: Node
    """Its tenant: the weight divides what it pays."""
    lower: tuple[Node, ...]
    """Project and key, as far as there are such levels: they pay the same, undivided."""
    output_tokens: int = 0
    """Produced so far, all choices together."""
    charged: float = 0.0
    """In all, less what was given back, in cost units."""
    cached_tokens: int = 0
    """Of the prompt, found in the prefix cache."""
    cancelled: bool = False
    """A cancel has been passed on."""
    attempt: int = 0
    """How often whoever computed it was lost: the end of an earlier attempt is not its end."""

    @classmethod
    def of(cls, queued: Queued, cost: Cost, predicted_tokens: int, place: Place, slo_class: str) -> "Charge":
        """Of a request that is released now."""
        *lower, top = queued.leaf.path
        return cls(
            request=queued.request,
            leaf=queued.leaf,
            tenant=queued.tenant,
            project=queued.project,
            key=queued.key,
            slo_class=slo_class,
            weight=queued.weight,
            cost=cost,
            prompt_tokens=queued.prompt_tokens,
            num_choices=queued.num_choices,
            max_output_tokens=queued.max_output_tokens,
            predicted_tokens=predicted_tokens,
            true_tokens=queued.true_tokens,
            place=place,
            room_tokens=place.size_tokens - queued.prompt_tokens,
            output_price=cost.per_token,
            top=top,
            lower=tuple(lower),
        )

    def pay(self, amount: float) -> None:
        """Charge an amount, in cost units, to every node of the path."""
        self.charged += amount
        self.top.counter += amount / self.weight
        for node in self.lower:
            node.counter += amount

    def settlement(self, outcome: str) -> Settle:
        """What to tell when it has ended, by what counts in the end."""
        return Settle(
            self.request,
            self.tenant,
            self.prompt_tokens,
            self.output_tokens,
            outcome,
            self.project,
            self.key,
            self.cached_tokens,
        )

    def move(self, leaf: Leaf) -> None:
        """It belongs to another leaf from now on."""
        self.leaf = leaf
        *lower, self.top = leaf.path
        self.lower = tuple(lower)


class Ledger:
    """Charges of everything in flight, by request and by sequence.

    Args:
        window: where requests that outgrow their place take more.
    """

    def __init__(self, window: Window) -> None:
        self.in_flight: dict[int, Charge] = {}
        self._window = window
        self._by_sequence: dict[int, Charge] = {}
        self._num_disputed = 0
        """Sequence ids that a request claimed while they were another's."""

    def open(self, charge: Charge) -> None:
        """A request was released: its prompt is charged at once, so that its tenant does not fill the whole window, and
        with it the output that is predicted.
        """
        self.in_flight[charge.request] = charge
        for choice in range(charge.num_choices):
            # An id that two requests claim stays the first one's: a gateway that counts wrong must end no process.
            if self._by_sequence.setdefault(charge.request + choice, charge) is not charge:
                self._num_disputed += 1
        charge.pay(charge.cost.whole(charge.prompt_tokens, charge.predicted_tokens))

    def tokens(self, sequences: list[int]) -> float:
        """One output token for each sequence; sequences of requests that ended are ignored. Returns their cost, whether
        it was charged now or at release.
        """
        find = self._by_sequence.get
        served = 0.0
        for sequence in sequences:
            charge = find(sequence)
            if charge is None:
                continue
            made = charge.output_tokens = charge.output_tokens + 1
            price = charge.output_price
            if price is None:
                price = charge.cost.token(charge.prompt_tokens, made)
            served += price
            if made > charge.predicted_tokens:
                charge.charged += price
                charge.top.counter += price / charge.weight
                for node in charge.lower:
                    node.counter += price
            if made > charge.room_tokens:
                charge.room_tokens = made
                self._window.grow(charge.place, 1)
        return served

    def hits(self, prefix_hits: Iterable[tuple[int, int]]) -> Iterator[tuple[Charge, float]]:
        """(request, prompt tokens that it found in the prefix cache): who gets how much back. Once for each request:
        what a preempted one finds when it resumes was paid for before.
        """
        for request, cached_tokens in prefix_hits:
            charge = self.in_flight.get(request)
            if charge is not None and not charge.cached_tokens and cached_tokens > 0:
                charge.cached_tokens = min(cached_tokens, charge.prompt_tokens)
                refund = charge.cost.saved(charge.prompt_tokens, charge.cached_tokens)
                charge.charged -= refund
                yield charge, refund

    def catch_up(self, charge: Charge, output_tokens: int) -> float:
        """So many output tokens were produced in all, whatever was heard of them; returns what is owed for the others
        (negative: given back).
        """
        before, after = (max(made, charge.predicted_tokens) for made in (charge.output_tokens, output_tokens))
        owed = charge.cost.whole(charge.prompt_tokens, after) - charge.cost.whole(charge.prompt_tokens, before)
        charge.output_tokens = output_tokens
        charge.charged += owed
        if output_tokens > charge.room_tokens:
            self._window.grow(charge.place, output_tokens - charge.room_tokens)
            charge.room_tokens = output_tokens
        return owed

    def close(self, charge: Charge, output_tokens: int, *, refund_prompt: bool) -> float:
        """A request ended with `output_tokens` that count; returns what its tenant gets back (negative: still owes).

        Charges follow the final count: what was predicted and did not come, and tokens discarded after a stop string or
        a cancel come back, tokens whose usage never arrived are charged now.
        """
        charge.output_tokens = output_tokens
        if refund_prompt:
            charge.prompt_tokens = charge.cached_tokens = 0
            owed = 0.0
        else:
            owed = charge.cost.whole(charge.prompt_tokens, output_tokens)
            if charge.cached_tokens:
                owed -= charge.cost.saved(charge.prompt_tokens, charge.cached_tokens)
        refund, charge.charged = charge.charged - owed, owed
        del self.in_flight[charge.request]
        for choice in range(charge.num_choices):
            if self._by_sequence.get(charge.request + choice) is charge:
                del self._by_sequence[charge.request + choice]
        return refund

    def move(self, queue: FairQueue) -> None:
        """The levels are others: whatever is in flight belongs to other nodes."""
        for charge in self.in_flight.values():
            charge.move(queue.leaf(charge.tenant, charge.project, charge.key))
            queue.adopt(charge.leaf)

    def check(self) -> None:
        """Assert what must hold between events."""
        known = {charge.request + choice for charge in self.in_flight.values() for choice in range(charge.num_choices)}
        owned = set(self._by_sequence)
        assert owned <= known if self._num_disputed else owned == known, (
            "sequences in flight and requests in flight differ"
        )
        for charge in self.in_flight.values():
            made = max(charge.output_tokens, charge.predicted_tokens)
            owed = charge.cost.whole(charge.prompt_tokens, made)
            if charge.cached_tokens:
                owed -= charge.cost.saved(charge.prompt_tokens, charge.cached_tokens)
            close = abs(charge.charged - owed) <= 1e-6 * max(1.0, owed)
            assert close, f"request {charge.request} was charged {charge.charged}, not {owed}"
