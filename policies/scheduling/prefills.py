"""The prompts that a stage may plan, in its order, and the row of one that it did.

Owns who comes next. Does not know blocks or budgets: whether it fits, and how much of it, is the stage's matter.
"""

from collections.abc import Container, Iterator

from policies.scheduling.executor import Executor
from policies.scheduling.orders import started_key
from policies.scheduling.rules import CARRY_OVER_RULE, PrefillRule
from policies.scheduling.state import Sequence


class Prefill:
    """A prompt's row: `num_tokens` from where it stands; `final` when nothing of the prompt is left after it."""

    __slots__ = ("final", "num_new_blocks", "num_tokens", "row", "sequence")

    def __init__(self, row: int, sequence: Sequence, num_tokens: int, num_new_blocks: int) -> None:
        self.row = row
        self.sequence = sequence
        self.num_tokens = num_tokens
        self.num_new_blocks = num_new_blocks
        self.final = num_tokens == sequence.prompt_left


def candidates(
    executor: Executor, stage: PrefillRule, planned: Container[int], aged_since_s: float
) -> Iterator[Sequence]:
    """Who may be planned, one at a time; what became of the one before is looked at. `planned`: ids in this plan."""
    started = _started(executor, stage, planned, aged_since_s) if stage.started and executor.started else []
    if stage.merge:
        yield from _merged(executor, stage, started, aged_since_s)
        return
    yield from started
    if stage.waiting:
        while (first := _first_waiting(executor, stage, aged_since_s)) is not None:
            yield first


def _merged(executor: Executor, stage: PrefillRule, started: list[Sequence], since_s: float) -> Iterator[Sequence]:
    """Started and waiting ones in one order; once a waiting one cannot be planned, no other waiting one."""
    index = 0
    barred = False
    order, key = stage.order, executor.waiting.key
    while True:
        first = None if barred else _first_waiting(executor, stage, since_s)
        if index < len(started) and (
            first is None or started_key(started[index], order, since_s) < key(first, order, since_s)
        ):
            yield started[index]
            index += 1
        elif first is not None:
            yield first
            barred = bool(first.ticket)  # a started one waits no more, nor does one that awaits a prefix
        else:
            return


def _first_waiting(executor: Executor, stage: PrefillRule, since_s: float) -> Sequence | None:
    waiting = executor.waiting
    return waiting.first_carried() if stage is CARRY_OVER_RULE else waiting.first(stage.line, since_s)


def _started(executor: Executor, stage: PrefillRule, planned: Container[int], since_s: float) -> list[Sequence]:
    sequences = [
        s
        for s in executor.started.values()
        if s.id not in planned
        and not s.stalled
        and s.prompt_left <= stage.longest
        and (stage is not CARRY_OVER_RULE or executor.is_carried(s))
    ]
    if len(sequences) < 2:
        return sequences
    return sorted(sequences, key=lambda s: started_key(s, stage.order, since_s))
