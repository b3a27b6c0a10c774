"""Processes die under load, and no reader can tell. `fairlead bench chaos` is the long form."""

import pytest

from ops.bench.chaos_faults import FAULTS
from ops.bench.chaos_runs import outcome

SEED = 11
NUM_ASKS = 39
"""All kinds but one, which is not streamed."""


@pytest.mark.slow
def test_each_service_is_killed_in_turn_and_costs_no_reader_a_token() -> None:
    seen = outcome(FAULTS["kill-any"], 5, SEED, num_asks=NUM_ASKS)
    assert seen.tally.problems == []
    assert seen.tally.num["complete"] > 0
    assert not seen.tally.refusals
    assert seen.usage == ""
    assert not any(seen.left.values()), seen.left
    assert seen.trouble == []
