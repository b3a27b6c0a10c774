"""Why a token was not planned as soon as it could have been: the names of waiting."""

from enum import IntEnum


class Cause(IntEnum):
    """What a token waited for that was ready; as it crosses the wire."""

    PIPELINE = 0
    """Nothing was decided meanwhile: the steps in flight were as many as there may be."""
    DEFERRED = 1
    """The policy left it for later, because its deadline did."""
    BUDGET = 2
    """Its deadline was near, and the step full of others' tokens or as long as it may be."""
    SLOTS = 3
    """The step held as many decodes as it may."""
    KV = 4
    """No block was free for it."""
    PREEMPTED = 5
    """It had lost its blocks to another; they were computed again."""
    RECOMPUTE = 6
    """Its executor was lost; its blocks were computed again on another."""
    BACKPRESSURE = 7
    """Its gateway did not read."""
    RESUMED = 8
    """Its scheduler was lost, or its gateway's stream to it; the next one had its blocks computed again."""
