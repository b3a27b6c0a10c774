"""A candidate policy beside the live one: what it would have planned instead, from the same state at the same instants.

Owns the mirror, a copy of the live core that is fed what the live one is fed, and the comparison of single plans: every
plan of the candidate starts from the state that the live policy led to, so disagreements do not add up. Decides nothing
that anybody carries out; reads no clock. What admission would release otherwise is not seen here.
"""

import pickle
from collections import Counter
from collections.abc import Iterable

from msgspec import Struct

from policies.commands import Command, StartStep, StepPlan, encode
from policies.events import PolicyApplied, SchedulerEvent
from policies.lifecycle import HOLDS_BLOCKS, State
from policies.scheduling.core import SchedulerCore

LIVE, CANDIDATE = "live", "candidate"
ORDER, ADMISSION, CHUNK, DEFERRAL, PREEMPTION = "order", "admission", "chunk", "deferral", "preemption"
KINDS = {
    ORDER: "another sequence was taken in its place",
    ADMISSION: "a waiting prompt was started by one alone",
    CHUNK: "a prompt was cut to another length",
    DEFERRAL: "a sequence was left out of the step by one alone",
    PREEMPTION: "a sequence lost its blocks by one alone",
}
"""What a disagreement is about, and that in words."""
ALONE = (ADMISSION, DEFERRAL, DEFERRAL)
"""Kinds of the groups of `_alone`."""
STARTS = StartStep.__name__.encode()
"""In the bytes of every command list with a plan."""


class ShadowError(Exception):
    """The mirror does not do what the live core did: what it says of a candidate would be worth nothing."""


class Example(Struct, frozen=True):
    """The first sequence of a kind of disagreement."""

    at_s: float
    """Core time."""
    sequence: int
    slo_class: str
    prompt_tokens: int
    was: str
    """Its state before: `waiting`, `prefill` or `decode`."""
    live_tokens: int
    """Planned for it; 0: none."""
    candidate_tokens: int


class Disagreement(Struct):
    """Rows that one policy planned and the other did not, or otherwise."""

    kind: str
    by: str
    """Who planned it, or took its blocks: `live` or `candidate`; of chunks who took more."""
    stage: int | None
    """Index of that one's stage; None: of a preemption there is none."""
    example: Example
    num_rows: int = 0
    num_plans: int = 0


class Tally(Struct):
    """What was seen so far."""

    num_plans: int = 0
    """That the live policy made."""
    num_compared: int = 0
    num_agreed: int = 0
    """Of those compared: the candidate planned the very same rows."""
    num_rows: int = 0
    """Of the live plans compared."""
    disagreements: list[Disagreement] = []


class Shadow:
    """One candidate beside one live core.

    Args:
        state: the live core, as `copy_of` wrote it.
        candidate: a policy document that can be used.
    """

    def __init__(self, state: bytes, candidate: bytes) -> None:
        self.tally = Tally()
        self._mirror = _core(state)
        self._candidate = candidate
        self._kinds: dict[tuple[str, str, int | None], Disagreement] = {}

    def follow(self, event: SchedulerEvent, now: float, commands: bytes, *, compare: bool) -> None:
        """Tell the mirror what the live core was told and what it answered; if wanted, compare the candidate's answer.

        Raises:
            ShadowError: the mirror answers something else than the live core.
        """
        # A copy is the dear part: it is made only where there is a plan to compare.
        before = copy_of(self._mirror) if compare and STARTS in commands else None
        states = {} if before is None else {id_: each.life.state for id_, each in self._mirror.sequences.items()}
        answer = self._mirror.handle(event, now)
        if encode(answer) != commands:
            raise ShadowError(
                f"the mirror answers {type(event).__name__} at {now:.6f} s otherwise than the live scheduler"
            )
        plans = _plans(answer)
        self.tally.num_plans += len(plans)
        if before is None or not plans or isinstance(event, PolicyApplied):
            return
        other = _core(before)
        other.follow_policy(PolicyApplied(other.revision, self._candidate))
        others = _plans(other.handle(event, now))
        for executor, plan in plans.items():
            found = list(_compare(_Side(self._mirror, plan, states), _Side(other, others.get(executor), states)))
            self._count(found, len(plan.sequences), now)

    def _count(self, found: "list[_Found]", num_rows: int, now: float) -> None:
        self.tally.num_compared += 1
        self.tally.num_rows += num_rows
        self.tally.num_agreed += not found
        seen = Counter((each.kind, each.by, each.stage) for each in found)
        for each in found:
            key = (each.kind, each.by, each.stage)
            if key not in self._kinds:
                self._kinds[key] = Disagreement(each.kind, each.by, each.stage, each.example(now))
        for key, count in seen.items():
            self._kinds[key].num_rows += count
            self._kinds[key].num_plans += 1
        self.tally.disagreements = sorted(self._kinds.values(), key=lambda each: -each.num_rows)


def copy_of(core: SchedulerCore) -> bytes:
    """A core as bytes, for `Shadow`; whoever reads them trusts whoever wrote them."""
    return pickle.dumps(core, pickle.HIGHEST_PROTOCOL)


def _core(state: bytes) -> SchedulerCore:
    core = pickle.loads(state)  # noqa: S301  written by `copy_of` in a service that proved to know the secret
    if not isinstance(core, SchedulerCore):
        raise ShadowError(f"a mirror of a scheduler was awaited and a {type(core).__name__} came")
    return core


class _Side:
    """One of two plans from the same state, and the core after it."""

    def __init__(self, core: SchedulerCore, plan: StepPlan | None, before: dict[int, State]) -> None:
        self._core = core
        self._before = before
        self.tokens: dict[int, int] = {}
        self.stages: dict[int, int] = {}
        self.starts: set[int] = set()
        if plan is not None:
            ids = plan.sequences.tolist()
            self.tokens = dict(zip(ids, plan.num_tokens.tolist(), strict=True))
            self.stages = dict(zip(ids, plan.stages.tolist(), strict=True))
            self.starts = set(plan.starts)

    def was(self, sequence: int) -> State:
        """Before the plan; one that was released at this instant was waiting."""
        return self._before.get(sequence, State.WAITING)

    def preempted(self) -> list[int]:
        """Who held blocks before, and holds none now without having ended."""
        return [
            id_
            for id_, sequence in self._core.sequences.items()
            if self.was(id_) in HOLDS_BLOCKS and sequence.life.state in (State.WAITING, State.RETURNING)
        ]

    def facts(self, sequence: int) -> tuple[str, int]:
        """Class and prompt length of a sequence, if it is still there."""
        found = self._core.sequences.get(sequence)
        return ("", 0) if found is None else (found.slo_class, found.prompt_tokens)


class _Found:
    """One row of a disagreement."""

    def __init__(self, kind: str, by: str, sequence: int, sides: "tuple[_Side, _Side]", *, staged: bool = True) -> None:
        self.kind = kind
        self.by = by
        self.stage = sides[by == CANDIDATE].stages.get(sequence) if staged else None
        self._sequence = sequence
        self._sides = sides

    def example(self, now: float) -> Example:
        """This row as the example of its kind."""
        live, candidate = self._sides
        slo_class, prompt_tokens = max(live.facts(self._sequence), candidate.facts(self._sequence))
        return Example(
            at_s=now,
            sequence=self._sequence,
            slo_class=slo_class,
            prompt_tokens=prompt_tokens,
            was=live.was(self._sequence).value,
            live_tokens=live.tokens.get(self._sequence, 0),
            candidate_tokens=candidate.tokens.get(self._sequence, 0),
        )


def _compare(live: _Side, candidate: _Side) -> Iterable[_Found]:
    sides = (live, candidate)
    for sequence in live.tokens.keys() & candidate.tokens.keys():
        if live.tokens[sequence] != candidate.tokens[sequence]:
            by = LIVE if live.tokens[sequence] > candidate.tokens[sequence] else CANDIDATE
            yield _Found(CHUNK, by, sequence, sides)
    for kind, only in zip(ALONE, zip(_alone(live, candidate), _alone(candidate, live), strict=True), strict=True):
        exchanged = min(map(len, only))
        for by, sequences in zip((LIVE, CANDIDATE), only, strict=True):
            for number, sequence in enumerate(sequences):
                # As many taken here as left out there: the same room was given to others.
                yield _Found(ORDER if number < exchanged else kind, by, sequence, sides)
    lost = {LIVE: live.preempted(), CANDIDATE: candidate.preempted()}
    for by, other in ((LIVE, CANDIDATE), (CANDIDATE, LIVE)):
        for sequence in lost[by]:
            if sequence not in lost[other]:
                yield _Found(PREEMPTION, by, sequence, sides, staged=False)


def _alone(one: _Side, other: _Side) -> tuple[list[int], list[int], list[int]]:
    """Sequences that this one planned and the other did not: those it started, prompts that go on, decodes."""
    only = [sequence for sequence in one.tokens if sequence not in other.tokens]
    going_on = [sequence for sequence in only if sequence not in one.starts]
    return (
        [sequence for sequence in only if sequence in one.starts],
        [sequence for sequence in going_on if one.was(sequence) is not State.DECODE],
        [sequence for sequence in going_on if one.was(sequence) is State.DECODE],
    )


def _plans(commands: Iterable[Command]) -> dict[int, StepPlan]:
    """The first plan of each executor."""
    plans: dict[int, StepPlan] = {}
    for command in commands:
        if isinstance(command, StartStep):
            plans.setdefault(command.executor, command.plan)
    return plans
