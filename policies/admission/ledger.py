"""Who has been charged what for the requests in flight.

Knows charges, counts and sequences of released requests; does not know queues, windows or time. One record for each
request in flight; every output token is charged exactly once, and the final count decides.
"""

from msgspec import Struct

from policies.admission.fairness import Account

NOTHING_DONE = ("error", "refused")
"""Outcomes that give the prompt back when no token was produced: the failure was ours."""


class Charge(Struct, gc=False, eq=False):
    """One released request's charges."""

    request: int
    account: Account
    prompt_tokens: int
    """Charged at release; 0 after a refund of the prompt."""
    size_tokens: int
    """What it reserves of the window."""
    num_choices: int
    prompt_price: float
    """Cost of a prompt token divided by the tenant's weight, as it was at release."""
    output_price: float
    output_tokens: int = 0
    """Charged so far, all choices together."""
    cancelled: bool = False
    """A cancel has been passed on."""


class Ledger:
    """Charges of everything in flight, by request and by sequence."""

    def __init__(self) -> None:
        self.in_flight: dict[int, Charge] = {}
        self._by_sequence: dict[int, Charge] = {}

    def open(self, charge: Charge) -> None:
        """A request was released: its prompt is charged at once, so that its tenant does not fill the whole window."""
        self.in_flight[charge.request] = charge
        for choice in range(charge.num_choices):
            self._by_sequence[charge.request + choice] = charge
        charge.account.counter += charge.prompt_price * charge.prompt_tokens

    def tokens(self, sequences: list[int]) -> None:
        """One output token for each sequence; sequences of requests that ended are ignored."""
        find = self._by_sequence.get
        for sequence in sequences:
            charge = find(sequence)
            if charge is not None:
                charge.output_tokens += 1
                charge.account.counter += charge.output_price

    def close(self, charge: Charge, output_tokens: int, *, refund_prompt: bool) -> float:
        """A request ended with `output_tokens` that count; returns what its tenant gets back (negative: still owes).

        Charges follow the final count: tokens discarded after a stop string or a cancel come back, tokens whose usage
        never arrived are charged now.
        """
        refund = charge.output_price * (charge.output_tokens - output_tokens)
        charge.output_tokens = output_tokens
        if refund_prompt:
            refund += charge.prompt_price * charge.prompt_tokens
            charge.prompt_tokens = 0
        del self.in_flight[charge.request]
        for choice in range(charge.num_choices):
            del self._by_sequence[charge.request + choice]
        return refund

    def check(self) -> None:
        """Assert what must hold between events."""
        known = {charge.request + choice for charge in self.in_flight.values() for choice in range(charge.num_choices)}
        assert known == set(self._by_sequence), "sequences in flight and requests in flight differ"
