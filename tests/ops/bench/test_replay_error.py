"""A run compared with its replay, on runs that were virtual themselves."""

from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from virtual_recording import SLAI, logs

from ops.bench.paced_load import MAX_OUTPUT_TOKENS, MAX_PROMPT_TOKENS, TENANTS, asks
from ops.bench.replay_error import compare
from policies.simulation.executor_model import BatchContext, Device
from policies.simulation.recording import read_recording
from policies.simulation.step_shape import StepShape
from policies.simulation.workload import TraceRequest, synthetic

DEVICE = Device("small", 600, 16, 2048, BatchContext(0.004, 2e-4, 1e-6, 0.002, 1e-4))
TOGETHER = synthetic("shared_prefixes", qps=4.0, duration_s=25.0, seed=3, max_sequence_tokens=1024)
# In three parts: the first has been answered when the second begins.
REQUESTS = [
    request._replace(arrived_at_s=request.arrived_at_s + 20 * (number >= 20) + 40 * (number >= len(TOGETHER) - 20))
    for number, request in enumerate(TOGETHER)
]


def recorded(device: Device) -> tuple[bytes, bytes]:
    _, written = logs(SLAI, REQUESTS, device)
    return written["admission"], written["scheduler"]


@cache
def undisturbed() -> tuple[bytes, bytes]:
    return recorded(DEVICE)


def test_a_run_on_a_device_that_stays_as_it_was_is_met() -> None:
    compared = compare(*undisturbed(), num_around=20)
    assert compared.replayed == pytest.approx(compared.live, rel=0.1)
    assert compared.num_identical == compared.num_records > 500
    assert compared.fit_error < 0.01


class Busy(NamedTuple):
    """Twice as slow between two of its steps."""

    between: range
    steps: list[StepShape]

    def step_s(self, shape: StepShape) -> float:
        self.steps.append(shape)
        return DEVICE.step_time.step_s(shape) * (2 if len(self.steps) in self.between else 1)


def test_a_device_that_is_slower_while_nothing_is_fitted_shows_in_every_figure() -> None:
    from_s, to_s = REQUESTS[20].arrived_at_s, REQUESTS[-20].arrived_at_s
    ends_s = [step.ended_at_s for step in read_recording(*undisturbed()).steps]
    # A slower device batches more and takes fewer steps for the same.
    first, num_steps = sum(end_s < from_s for end_s in ends_s), sum(from_s <= end_s < to_s for end_s in ends_s)
    between = range(first, first + num_steps * 3 // 10)
    compared = compare(*recorded(DEVICE._replace(step_time=Busy(between, []))), num_around=20)
    assert max(now / then for now, then in zip(compared.replayed, compared.live, strict=True)) < 0.8


def test_an_answer_that_replays_otherwise_is_counted() -> None:
    admission, scheduler = undisturbed()
    damaged = bytearray(scheduler)
    # A step's number in a command: whoever reads the run does not look at it, who verifies it does.
    at = damaged.index(b"\xa8revision\x01", len(damaged) // 2) + len(b"\xa8revision")
    damaged[at] = 2
    compared = compare(admission, bytes(damaged), num_around=20)
    assert 0 < compared.num_identical < compared.num_records


def test_a_run_in_which_somebody_was_not_served_is_void() -> None:
    requests = [*REQUESTS, TraceRequest(99.0, "acme", "paid", prompt_tokens=20_000, output_tokens=9)]
    _, written = logs(SLAI, requests, DEVICE)
    with pytest.raises(RuntimeError, match=f"this run is void: 1 of {len(requests)} requests got no token"):
        compare(written["admission"], written["scheduler"], num_around=20)


def test_asks_are_the_same_for_a_seed_and_begin_as_their_tenant_does_for_any() -> None:
    first, again, other = (asks(50, vocabulary_size=4096, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    beginnings: dict[str, set[tuple[int, ...]]] = {}
    shared = {tenant.name: tenant.shared_tokens for tenant in TENANTS}
    for ask in first + other:
        assert shared[ask.tenant] < len(ask.prompt) <= MAX_PROMPT_TOKENS
        assert 2 <= ask.max_output_tokens <= MAX_OUTPUT_TOKENS
        beginnings.setdefault(ask.tenant, set()).add(tuple(ask.prompt[: shared[ask.tenant]]))
    assert {tenant: len(found) for tenant, found in beginnings.items()} == {"acme": 1, "globex": 1, "initech": 1}
    assert np.unique([ask.seed for ask in first]).size > 45
