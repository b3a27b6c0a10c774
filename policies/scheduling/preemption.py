"""Who gives KV blocks back when a decode finds none free.

Owns the choice of victims. Candidates hold blocks, still have tokens to plan and are not in the plan being built;
whoever has its last token planned gives its blocks back by itself.
"""

from collections.abc import Callable, Iterable

from policies.lifecycle import State
from policies.scheduling.state import Sequence

Victim = Callable[[Iterable[Sequence], Sequence], Sequence | None]


def _newest(sequences: Iterable[Sequence]) -> Sequence | None:
    return max(sequences, key=lambda s: (s.arrived_s, s.number), default=None)


def newest_started_prefill(candidates: Iterable[Sequence], _: Sequence) -> Sequence | None:
    """The unfinished prefill that was started last."""
    prefills = [s for s in candidates if s.life.state is State.PREFILL]
    return max(prefills, key=lambda s: s.admitted, default=None)


def newest(candidates: Iterable[Sequence], _: Sequence) -> Sequence | None:
    """The latest arrival."""
    return _newest(candidates)


def newest_decode(candidates: Iterable[Sequence], _: Sequence) -> Sequence | None:
    """The latest arrival among the decoding."""
    return _newest(s for s in candidates if s.life.state is State.DECODE)


def itself(_: Iterable[Sequence], sequence: Sequence) -> Sequence:
    """The one that needs the block."""
    return sequence


VICTIMS: dict[str, Victim] = {
    "newest_started_prefill": newest_started_prefill,
    "newest": newest,
    "newest_decode": newest_decode,
    "self": itself,
}


def choose(victims: tuple[Victim, ...], candidates: list[Sequence], sequence: Sequence) -> Sequence:
    """The first victim the rules find; without one, the sequence that needs the block."""
    for rule in victims:
        victim = rule(candidates, sequence)
        if victim is not None:
            return victim
    return sequence
