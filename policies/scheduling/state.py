"""What the scheduler knows of a request, a sequence and a step in flight.

Owns plain data. Progress of sequences that hold blocks lives in the executor's columns (see executor.py), because every
step touches it; here is what changes a few times in a sequence's life.
"""

import numpy as np
from numpy.typing import NDArray

from policies.commands import BoolArray
from policies.lifecycle import Life
from policies.scheduling.lengths.predicted import Predicted
from policies.scheduling.prefixes import Prefix
from policies.scheduling.step_costs import StepShape

SlotArray = NDArray[np.intp]


class Request:
    """What a client asked for; its choices are sequences. Done when `open` is empty."""

    __slots__ = ("gateway", "id", "open", "output_tokens", "owner")

    def __init__(self, request: int, gateway: int, num_choices: int, owner: str = "") -> None:
        self.id = request
        self.gateway = gateway
        self.owner = owner
        self.open = dict.fromkeys(range(request, request + num_choices))
        """Sequence ids not finished yet, in order."""
        self.output_tokens: dict[int, int] = {}
        """Sequence id -> tokens that count, of the finished ones."""


class Sequence:
    """Tokens and KV of one choice of a request.

    Attributes:
        number: order of release; breaks every tie.
        arrived_s: core time at which its request was received.
        kept_tokens: output tokens that were made before it (re)started; they are prefilled like the prompt.
        brought_tokens: those of them that came with its release, from a scheduler that was lost.
        prompt_left: tokens of prompt and kept output not planned yet; set at its start.
        admitted: order of first blocks, growing; 0 while it has none.
        slot: its row in the executor's columns, None while it has none.
        ticket: names its live entry in the waiting heaps; 0 while it is in none.
        resumed: it was started before, so it precedes those that were not.
        stalled: its gateway does not read; it is left out of plans.
        prefix: names of its tokens, None where it neither finds nor leaves anything in the prefix cache.
        awaits: the key of a prefix that another computes and that it waits for.
        true_tokens: output tokens that it will produce; None, except in a replay.
        predicted: the interval made for it, None where the policy goes by no lengths.
        estimate: output tokens that it is expected to come to, in all; rises when it starts to wait again.
        num_preemptions: how often its blocks were taken.
        protected: others give their blocks first.
    """

    __slots__ = (
        "admitted",
        "arrived_s",
        "awaits",
        "brought_tokens",
        "estimate",
        "executor",
        "id",
        "kept_tokens",
        "life",
        "max_output_tokens",
        "num_preemptions",
        "number",
        "predicted",
        "prefix",
        "priority",
        "prompt_left",
        "prompt_tokens",
        "protected",
        "request",
        "resumed",
        "slo_class",
        "slot",
        "stalled",
        "tbt_s",
        "ticket",
        "true_tokens",
    )

    def __init__(
        self,
        sequence: int,
        request: Request,
        *,
        number: int,
        arrived_s: float,
        prompt_tokens: int,
        max_output_tokens: int,
        slo_class: str,
        prefix: Prefix | None = None,
        true_tokens: int | None = None,
    ) -> None:
        self.id = sequence
        self.request = request
        self.number = number
        self.arrived_s = arrived_s
        self.prompt_tokens = prompt_tokens
        self.max_output_tokens = max_output_tokens
        self.slo_class = slo_class
        self.priority = 0
        self.tbt_s = 0.0
        self.kept_tokens = self.brought_tokens = 0
        self.prompt_left = prompt_tokens
        self.admitted = 0
        self.executor: int | None = None
        self.slot: int | None = None
        self.ticket = 0
        self.resumed = False
        self.stalled = False
        self.prefix = prefix
        self.awaits: bytes | None = None
        self.true_tokens = true_tokens
        self.predicted: Predicted | None = None
        self.estimate = max_output_tokens
        self.num_preemptions = 0
        self.protected = False
        self.life = Life(sequence)

    @property
    def tokens_to_prefill(self) -> int:
        """Prompt and kept output tokens: what a start must compute."""
        return self.prompt_tokens + self.kept_tokens

    @property
    def longest(self) -> int:
        """Tokens it may come to: prompt and all output."""
        return self.prompt_tokens + self.max_output_tokens


class Step:
    """A step an executor was given and has not reported.

    A slot is not used again before every step that has a row of it has returned, so slots name rows unambiguously.

    Attributes:
        slots: slot of each row.
        samples: which rows sample a token.
        arms: slots whose next deadline counts from this step's end.
        tbt_s: their classes' TBT, parallel to `arms`.
        ending: slots whose last token this is.
        dropped: slots whose rows reach nobody: finished or cancelled meanwhile.
        closing: slots to use again once this step has returned.
        returning: preempted sequences that may wait again once this step has returned.
        filled: (sequence, first position, position after the last) of the prompt pieces that can be shared.
        shape: what its time is learned by; None where nothing is to be learned from it.
        expected_s: what it is expected to take; None: nothing is known of such steps.
    """

    __slots__ = (
        "arms",
        "budget",
        "closing",
        "dropped",
        "ending",
        "expected_s",
        "filled",
        "num_samples",
        "num_tokens",
        "number",
        "planned_at_s",
        "returning",
        "samples",
        "shape",
        "slots",
        "tbt_s",
    )

    def __init__(
        self,
        number: int,
        planned_at_s: float,
        *,
        slots: SlotArray,
        samples: BoolArray,
        arms: SlotArray,
        num_samples: int,
    ) -> None:
        self.number = number
        self.planned_at_s = planned_at_s
        self.slots = slots
        self.samples = samples
        self.arms = arms
        self.num_samples = num_samples
        self.tbt_s: NDArray[np.float64]
        self.num_tokens = 0
        self.budget = 0
        self.ending: list[int] = []
        self.dropped: list[int] = []
        self.closing: list[int] = []
        self.returning: list[Sequence] = []
        self.filled: list[tuple[Sequence, int, int]] = []
        self.shape: StepShape | None = None
        self.expected_s: float | None = None

    def row_of(self, slot: int) -> int | None:
        """The row of a slot, or None."""
        rows = (self.slots == slot).nonzero()[0]
        return int(rows[0]) if len(rows) else None

    def samples_slot(self, slot: int) -> bool:
        """Whether the slot has a row here that samples a token."""
        row = self.row_of(slot)
        return row is not None and bool(self.samples[row])

    def sampling_row_of(self, slot: int) -> int | None:
        """Index of the slot's row among the sampling rows, or None."""
        rows = (self.slots[self.samples] == slot).nonzero()[0]
        return int(rows[0]) if len(rows) else None
