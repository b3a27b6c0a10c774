"""What may happen to a sequence, as one table.

Owns the states of a released sequence and which happening leads from which to which; a missing row *is* the error.
Knows no blocks, budgets or policies. Per-token progress is no transition: a sequence passes here a handful of times in
its life.
"""

from enum import Enum

MAX_STORY = 32
"""Happenings remembered of one sequence; older ones are dropped first."""


class State(Enum):
    """Where a sequence is. Exactly one at a time."""

    WAITING = "waiting"
    """Holds no KV blocks; may be started."""
    PREFILL = "prefill"
    """Holds blocks; part of its prompt (and kept tokens) is still to be planned."""
    DECODE = "decode"
    """Holds blocks; its next token may be planned."""
    ENDING = "ending"
    """Holds blocks; its last token is planned and has not returned."""
    RETURNING = "returning"
    """Preempted while in flight: blocks given back, tokens still to come."""
    FINISHED = "finished"
    """Nothing is held and nothing will be planned."""


class Happening(Enum):
    """What moves a sequence."""

    RELEASED = "released"
    STARTED = "started"
    PREFILLED = "prompt planned"
    LAST_PLANNED = "last token planned"
    PREEMPTED = "preempted"
    PREEMPTED_IN_FLIGHT = "preempted in flight"
    RETURNED = "tokens returned"
    LOST = "executor lost"
    FINISHED = "finished"
    CANCELLED = "cancelled"


_S, _H = State, Happening
TRANSITIONS: dict[tuple[State, Happening], State] = {
    (_S.WAITING, _H.RELEASED): _S.WAITING,
    (_S.WAITING, _H.STARTED): _S.PREFILL,
    (_S.WAITING, _H.LOST): _S.WAITING,
    (_S.WAITING, _H.FINISHED): _S.FINISHED,
    (_S.WAITING, _H.CANCELLED): _S.FINISHED,
    (_S.PREFILL, _H.PREFILLED): _S.DECODE,
    (_S.PREFILL, _H.PREEMPTED): _S.WAITING,
    (_S.PREFILL, _H.PREEMPTED_IN_FLIGHT): _S.RETURNING,
    (_S.PREFILL, _H.LOST): _S.WAITING,
    (_S.PREFILL, _H.FINISHED): _S.FINISHED,
    (_S.PREFILL, _H.CANCELLED): _S.FINISHED,
    (_S.DECODE, _H.LAST_PLANNED): _S.ENDING,
    (_S.DECODE, _H.PREEMPTED): _S.WAITING,
    (_S.DECODE, _H.PREEMPTED_IN_FLIGHT): _S.RETURNING,
    (_S.DECODE, _H.LOST): _S.WAITING,
    (_S.DECODE, _H.FINISHED): _S.FINISHED,
    (_S.DECODE, _H.CANCELLED): _S.FINISHED,
    (_S.ENDING, _H.LOST): _S.WAITING,
    (_S.ENDING, _H.FINISHED): _S.FINISHED,
    (_S.ENDING, _H.CANCELLED): _S.FINISHED,
    (_S.RETURNING, _H.RETURNED): _S.WAITING,
    (_S.RETURNING, _H.LOST): _S.WAITING,
    (_S.RETURNING, _H.FINISHED): _S.FINISHED,
    (_S.RETURNING, _H.CANCELLED): _S.FINISHED,
}

HOLDS_BLOCKS = (State.PREFILL, State.DECODE, State.ENDING)


class InvalidTransition(Exception):  # noqa: N818  it is named after what happened
    """Something happened to a sequence that cannot happen in its state; the message tells its whole story."""


class Life:
    """One sequence's state and its story: what happened, when (seconds of core time) and why."""

    __slots__ = ("name", "state", "story")

    def __init__(self, name: str | int) -> None:
        self.name = name
        self.state = State.WAITING
        self.story: list[tuple[float, Happening, str | int]] = []

    def pass_(self, happening: Happening, now: float, reason: str | int = "") -> None:
        """Move to the state the table gives. `reason` is a stage's index or a word.

        Raises:
            InvalidTransition: the table has no such row.
        """
        after = TRANSITIONS.get((self.state, happening))
        if after is None:
            raise InvalidTransition(
                f"sequence {self.name}: {happening.value!r} cannot happen while {self.state.value!r}; so far: "
                + "; ".join(f"{at:.6f} {past.value} {why}".rstrip() for at, past, why in self.story)
            )
        self.state = after
        self.story.append((now, happening, reason))
        if len(self.story) > MAX_STORY:
            del self.story[0]
