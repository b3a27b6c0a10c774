"""What the scheduler decides by: a compiled policy.

Owns the shape of the rules. `policies/document/compile.py` makes them; nothing here reads a document.
"""

from math import floor

import numpy as np
from msgspec import Struct

from policies.commands import BoolArray
from policies.scheduling.deadlines import OffsetRule
from policies.scheduling.lengths.lengths import LengthRule
from policies.scheduling.orders import Line, WaitingKey
from policies.scheduling.preemption import Victim
from policies.scheduling.prefixes import Namespace
from policies.scheduling.routing import Route
from policies.scheduling.state import Sequence

UNLIMITED = 2**31 - 1
CARRY_OVER = -1
"""Index of the implicit first stage that takes prefills no stage of the policy could finish."""


class DecodeRule(Struct, frozen=True):
    """A stage that plans one token for each decode."""

    index: int
    due: bool
    order: tuple[str, ...]
    exclusive: bool
    min_decoding: int


class PrefillRule(Struct, frozen=True):
    """A stage that plans prompts. `chunk` 0: any length; `max_sequences` UNLIMITED: no limit; `longest` UNLIMITED: all
    prompts, else those with at most so many tokens left.
    """

    index: int
    started: bool
    waiting: bool
    merge: bool
    chunked: bool
    chunk: int
    max_sequences: int
    longest: int
    order: tuple[str, ...]
    exclusive: bool
    min_decoding: int

    @property
    def line(self) -> Line:
        """In which those wait whom this stage could start."""
        return Line(self.order, self.longest)


CARRY_OVER_RULE = PrefillRule(
    index=CARRY_OVER,
    started=True,
    waiting=True,
    merge=False,
    chunked=True,
    chunk=0,
    max_sequences=UNLIMITED,
    longest=UNLIMITED,
    order=("arrival",),
    exclusive=False,
    min_decoding=0,
)


class Guard(Struct, frozen=True):
    """Who is protected from being preempted again and again."""

    max_preemptions: int
    max_share: float
    """Of the pool: what protected sequences may come to."""


class BudgetRule(Struct, frozen=True):
    """A token budget that follows time.

    Attributes:
        max_step_s: None: what the most urgent decode's deadline leaves.
        share: of that, for the step; the rest is for what the estimate misses.
        tile: a step comes to multiples of so many tokens.
        min: tokens of a step that has prompts, however urgent its decodes.
    """

    max_step_s: float | None
    share: float
    tile: int
    min: int


class SchedulingRules(Struct, frozen=True):
    """A policy as the scheduler needs it.

    Attributes:
        token_budget: of any step; UNLIMITED: none.
        budget: what a step's time makes of that; None: it is the same for every step.
        eager_kv: None: decodes are due by `offsets`; else by what a step takes, and all of them from this share of KV
            blocks in use.
        paced: whether anything follows what steps take by what is in them: `budget` or `eager_kv`.
        headroom: share of blocks that a sequence with more than `short_tokens` to prefill leaves free beside the
            watermark.
    """

    stages: tuple[DecodeRule | PrefillRule, ...]
    token_budget: int
    budget: BudgetRule | None
    max_sequences: int
    max_decodes: int
    aging_s: float
    offsets: OffsetRule
    eager_kv: float | None
    paced: bool
    step_time_weight: float | None
    admit_max_length: bool
    watermark: float
    future_share: float | None
    """Share of the pool that all who run may come to by their predicted ends; None: nobody looks ahead."""
    ahead_tokens: int
    """Tokens for which a sequence has room before they are written."""
    lengths: LengthRule | None
    """None: the policy goes by no lengths, and none are predicted."""
    requeue: WaitingKey
    restarts: bool
    """A preempted sequence begins its output again."""
    guard: Guard | None
    headroom: float
    short_tokens: int
    namespace: Namespace
    victims: tuple[Victim, ...]
    route: Route
    classes: dict[str, tuple[int, float]]
    """Class name -> (priority, TBT in seconds), in order of priority."""

    def slo(self, slo_class: str) -> tuple[int, float]:
        """Priority and TBT of a class. One that this policy does not know (it was classified under an older revision)
        is treated as the least important one.
        """
        found = self.classes.get(slo_class)
        return found if found is not None else next(reversed(self.classes.values()))

    def watermark_blocks(self, num_blocks: int) -> int:
        """Blocks kept free when a sequence starts."""
        return floor(self.watermark * num_blocks)

    def tokens_reserved(self, sequence: Sequence) -> int:
        """Tokens whose blocks a sequence takes at its start."""
        return sequence.longest if self.admit_max_length else sequence.tokens_to_prefill

    def decode_stages(self) -> tuple[int | None, int] | None:
        """The stages that plan the decodes when all of them are planned and no prompt: that of the due ones, if
        there is one, and the one of the others. None where a stage may keep another from its turn.
        """
        due: int | None = None
        for stage in self.stages:
            if isinstance(stage, DecodeRule):
                if stage.exclusive or stage.min_decoding:
                    return None
                if not stage.due:
                    return due, stage.index
                due = stage.index if due is None else due
        return None

    def decodes_of_stage(self) -> BoolArray:
        """By a stage's index, and last (index -1) for the carry-over stage: whether what it plans are decodes."""
        return np.array([*(isinstance(stage, DecodeRule) for stage in self.stages), False], np.bool_)

    def waiting_lines(self) -> tuple[Line, ...]:
        """Distinct lines of the stages that start sequences."""
        stages = [stage for stage in self.stages if isinstance(stage, PrefillRule) and stage.waiting]
        return tuple(dict.fromkeys(stage.line for stage in stages))

    def longest_piece(self, *, started: bool) -> int:
        """Most prompt tokens that the stages can finish of a started (or else waiting) prefill; 0 without a stage. One
        with an `if` does not count: its time may never come.
        """
        pieces = [
            stage.longest if stage.chunked else min(stage.longest, self.token_budget)
            for stage in self.stages
            if isinstance(stage, PrefillRule)
            and not stage.min_decoding
            and (stage.started if started else stage.waiting)
        ]
        return max(pieces, default=0)
