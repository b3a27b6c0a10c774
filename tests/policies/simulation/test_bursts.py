"""The shipped default policy on a machine with steps of 30 ms and more: a burst waits, a load that lasts is refused."""

from pathlib import Path

import numpy as np
import pytest

from policies.simulation.driver import Simulation
from policies.simulation.executor_model import Device, FloorLinear
from policies.simulation.outcome import Served
from policies.simulation.trace_request import TraceRequest

DOCUMENT = (Path(__file__).resolve().parents[3] / "policies" / "fairlead.yaml").read_bytes()
SLOW = Device("a small machine", 1024, 16, 2048, FloorLinear(0.03, 0.01, 4e-4, 0.0))


def served(tier: str, size: int, at_s: list[float]) -> list[Served]:
    generator = np.random.default_rng(size)
    lengths = generator.integers((20, 20), (400, 80), (len(at_s), size, 2)).tolist()
    requests = [
        TraceRequest(begin_s + number / 1000, tier, tier, *each)
        for begin_s, burst in zip(at_s, lengths, strict=True)
        for number, each in enumerate(burst)
    ]
    return Simulation(DOCUMENT, requests, SLOW, check=size < 10).run().served


@pytest.mark.parametrize("tier", ["free", "paid"])
@pytest.mark.parametrize(
    ("size", "at_s"), [(4, [0.0, 4.0, 8.0, 12.0]), (16, [0.0, 4.0, 8.0, 12.0]), (64, [0.0]), (200, [0.0])]
)
def test_a_burst_waits_and_everybody_is_served(tier: str, size: int, at_s: list[float]) -> None:
    assert all(one.finished_at_s is not None for one in served(tier, size, at_s))


def test_bursts_that_follow_each_other_faster_than_they_are_served_are_refused_only_after_a_while() -> None:
    ended = served("free", 100, [4.0 * number for number in range(6)])
    assert any(one.refusal == "would_be_late" for one in ended)
    # Nobody can be late in the first 5 s, and who came at 0 s is served before it has been the rule for ten more.
    assert not any(one.refusal for one in ended[:100])
