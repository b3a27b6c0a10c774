"""A step on a device, as the driver remembers it until it has ended.

Owns this record and nothing else.
"""

from msgspec import Struct

from policies.simulation.tokens import Requests


class Running(Struct):
    """What a step will bring about."""

    executor: int
    step: int
    step_time_s: float
    ended_ago_s: float
    """When the scheduler hears of its end."""
    sampled: Requests
    """Sequence of each sampling row, in plan order."""
    filled: list[tuple[int, int]]
    """(sequence, tokens in KV) after each row that samples nothing."""
    ended: list[int]
    """Sequences that end by themselves with this step."""
    made: Requests | None
    """Of each sampling row: which output token it makes, counted from 1; None where none is ever made twice."""
