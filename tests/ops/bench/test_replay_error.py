"""A run compared with its replay, on runs that were virtual themselves."""

import msgspec
import numpy as np
import pytest
from virtual_recording import SLAI, logs

from ops.bench.paced_load import MAX_OUTPUT_TOKENS, MAX_PROMPT_TOKENS, TENANTS, asks
from ops.bench.replay_error import compare
from policies.simulation.executor_model import BatchContext, Device
from policies.simulation.fitted_model import FittedDevice
from policies.simulation.fitting import fit
from policies.simulation.recording import read_recording
from policies.simulation.workload import TraceRequest, synthetic

DEVICE = Device("small", 600, 16, 2048, BatchContext(0.004, 2e-4, 1e-6, 0.002, 1e-4))
REQUESTS = synthetic("shared_prefixes", qps=4.0, duration_s=8.0, seed=3, max_sequence_tokens=1024)


def recorded() -> tuple[bytes, bytes]:
    _, written = logs(SLAI, REQUESTS, DEVICE)
    return written["admission"], written["scheduler"]


def fitted(*recording: bytes) -> FittedDevice:
    model = fit(read_recording(*recording).steps)
    return FittedDevice(description="", num_blocks=600, block_tokens=16, max_sequence_tokens=2048, model=model)


def test_a_run_on_the_fitted_device_itself_is_met() -> None:
    run = recorded()
    compared = compare(*run, fitted(*run))
    assert compared.replayed == pytest.approx(compared.live, rel=0.03)
    assert compared.num_identical == compared.num_records > 500


def test_a_device_half_as_fast_shows_in_every_figure() -> None:
    run = recorded()
    right = fitted(*run)
    noise = {
        kind: msgspec.structs.replace(noise, quantiles=tuple(2 * each for each in noise.quantiles))
        for kind, noise in right.model.noise.items()
    }
    slow = msgspec.structs.replace(right, model=msgspec.structs.replace(right.model, noise=noise))
    compared = compare(*run, slow)
    assert all(now > 1.5 * then for now, then in zip(compared.replayed, compared.live, strict=True))


def test_an_answer_that_replays_otherwise_is_counted() -> None:
    admission, scheduler = recorded()
    damaged = bytearray(scheduler)
    # A step's number in a command: whoever reads the run does not look at it, who verifies it does.
    at = damaged.index(b"\xa8revision\x01", len(damaged) // 2) + len(b"\xa8revision")
    damaged[at] = 2
    compared = compare(admission, bytes(damaged), fitted(admission, scheduler))
    assert 0 < compared.num_identical < compared.num_records


def test_a_run_in_which_somebody_was_not_served_is_void() -> None:
    requests = [*REQUESTS, TraceRequest(99.0, "acme", "paid", prompt_tokens=20_000, output_tokens=9)]
    _, written = logs(SLAI, requests, DEVICE)
    with pytest.raises(RuntimeError, match=f"this run is void: 1 of {len(requests)} requests got no token"):
        compare(written["admission"], written["scheduler"], fitted(*recorded()))


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
