"""Who gives KV blocks back when a decode finds none free.

Owns the choice of victims. Candidates hold blocks, still have tokens to plan and are not in the plan being built;
whoever has its last token planned gives its blocks back by itself.
"""

from collections.abc import Callable, Container, Iterable

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


def least_predicted_output(candidates: Iterable[Sequence], sequence: Sequence) -> Sequence | None:
    """The one with the least left to lose: the smallest estimate, of equal ones the latest arrival. Nobody of a class
    more important than the one that needs the block.
    """
    others = [s for s in candidates if s.priority >= sequence.priority]
    return min(others, key=lambda s: (s.estimate, -s.number), default=None)


def itself(_: Iterable[Sequence], sequence: Sequence) -> Sequence:
    """The one that needs the block."""
    return sequence


VICTIMS: dict[str, Victim] = {
    "newest_started_prefill": newest_started_prefill,
    "newest": newest,
    "newest_decode": newest_decode,
    "least_predicted_output": least_predicted_output,
    "self": itself,
}


def choose(
    victims: tuple[Victim, ...], candidates: list[Sequence], sequence: Sequence, protected: Container[int] = ()
) -> Sequence:
    """The first victim the rules find; without one, the sequence that needs the block.

    Args:
        victims: the rules.
        candidates: who holds blocks and may lose them.
        sequence: who needs a block.
        protected: slots of those who come last: only if all the others have gone, the newest of them.
    """
    if not protected:
        return _first(victims, candidates, sequence) or sequence
    victim = _first(victims, [s for s in candidates if s.slot not in protected], sequence)
    if victim is not None and victim.slot not in protected:
        return victim
    return _newest(s for s in candidates if s.slot in protected) or sequence


def _first(victims: tuple[Victim, ...], candidates: list[Sequence], sequence: Sequence) -> Sequence | None:
    return next((victim for rule in victims if (victim := rule(candidates, sequence)) is not None), None)
