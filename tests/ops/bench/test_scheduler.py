"""The planning benchmark measures every shipped policy with everybody running."""

import argparse

import pytest

from ops.bench import scheduler
from ops.bench.harness import UnmeasurableError


@pytest.mark.parametrize("policy", scheduler.SHIPPED)
def test_everybody_decodes_in_the_cycle_of_a_shipped_policy(monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    monkeypatch.setattr(scheduler, "CYCLES", 2)
    assert scheduler.Cycle(policy, 10).run() > 0


def test_a_policy_that_does_not_ship_is_named() -> None:
    with pytest.raises(UnmeasurableError, match=r"no policy slay ships that runs live; there are .*slai"):
        scheduler.run(argparse.Namespace(policy=["slay"], rounds=2))
