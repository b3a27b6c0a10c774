"""From event logs to a workload and what became of it."""

import msgspec
import numpy as np
import pytest
from virtual_recording import SLAI, logs, recorded

from policies.commands import Finish, Refuse, Release, Withdraw
from policies.event_log import encode_record
from policies.events import Arrived, CancelRequested, PolicyApplied, Released, Started
from policies.simulation.driver import Simulation
from policies.simulation.executor_model import DEVICES, Device, Tile
from policies.simulation.outcome import Served
from policies.simulation.recording import RecordingError, fitted_device, read_recording
from policies.simulation.workload import TraceRequest, synthetic

SMALL = Device("a small pool", 70, 16, 1024, Tile(16, 4e-3, 1e-5))
REQUESTS = synthetic("shared_prefixes", qps=8.0, duration_s=6.0, seed=3, max_sequence_tokens=1024)


def test_a_recorded_run_is_read_back_as_what_happened() -> None:
    requests = [request._replace(max_output_tokens=request.output_tokens + 5, weight=2.0) for request in REQUESTS]
    crowded = SLAI.replace(b"window_tokens: auto", b"window_tokens: 20000")
    outcome, recording = recorded(crowded, requests, SMALL)
    assert outcome.preemptions
    # What somebody would have got whom admission refused nobody knows.
    happened = [
        served
        if not served.refusal
        else Served(TraceRequest(*served.asked[:4], 261, max_output_tokens=261, weight=2.0), refusal=served.refusal)
        for served in outcome.served
    ]
    assert {bool(served.refusal) for served in happened} == {True, False}
    assert recording.served == happened
    assert np.array_equal(recording.gaps.requests, outcome.gaps.requests)
    assert np.array_equal(recording.gaps.seconds, outcome.gaps.seconds)
    assert [policy.document for policy in recording.policies] == [crowded]
    assert [(executor.executor, executor.num_blocks) for executor in recording.executors] == [(0, 70)]
    assert recording.num_left_out == 0


def test_its_steps_have_their_shapes_and_their_times() -> None:
    device = DEVICES["a10g-llama2-7b"](1.0)
    outcome, recording = recorded(SLAI, REQUESTS, device)
    assert len(recording.steps) == outcome.num_steps
    for step in recording.steps:
        assert step.step_time_s == pytest.approx(device.step_time.step_s(step.shape))
        assert step.planned_at_s - 1e-9 < step.begun_at_s < step.ended_at_s == step.heard_at_s


def test_a_log_that_ends_within_a_record_counts_up_to_there() -> None:
    _, written = logs(SLAI, REQUESTS, SMALL)
    whole = read_recording(written["admission"], written["scheduler"])
    cut = read_recording(written["admission"], written["scheduler"][: len(written["scheduler"]) // 2 + 1])
    assert 0 < len(cut.steps) < len(whole.steps)
    assert cut.steps == whole.steps[: len(cut.steps)]
    assert {served.finished_at_s is None for served in cut.served} == {True, False}


def test_a_damaged_log_and_logs_of_two_runs_are_refused_in_a_sentence() -> None:
    _, written = logs(SLAI, REQUESTS, SMALL)
    with pytest.raises(RecordingError, match=r"scheduler.log: record 1, at byte 0, cannot be read"):
        read_recording(written["admission"], b"\x01\x00\x00\x00\xc0")
    with pytest.raises(RecordingError, match=r"admission.log has no request 1, which the scheduler was given"):
        read_recording(b"", written["scheduler"])


ARRIVED = Arrived(8, "acme", "free", 40, 20, num_choices=2)


def log(*records: tuple[float, object, list[object]]) -> bytes:
    head = [(10.0, Started(0.0), []), (10.0, PolicyApplied(1, SLAI), [])]
    return b"".join(encode_record(*record) for record in [*head, *records])  # type: ignore[arg-type]


def test_requests_arrive_when_the_scheduler_believes_it_whatever_the_clock_of_admission() -> None:
    admission = log(
        (510.0, ARRIVED, [Release(8, "free", 0.0, "")]),
        (511.0, msgspec.structs.replace(ARRIVED, request=16), [Refuse(16, "queue_full", "")]),
    )
    scheduler = log((13.0, Released(8, "free", 40, 20, num_choices=2, waited_s=0.5), [Finish(8, "refused", 0)]))
    recording = read_recording(admission, scheduler)
    assert [(asked.arrived_at_s, asked.output_tokens) for asked in recording.requests] == [
        (2.5, 20),
        (2.5, 20),
        (4.0, 20),
    ]
    assert [served.refusal for served in recording.served] == ["refused", "refused", "queue_full"]


def test_who_left_before_the_first_token_is_counted_and_left_out() -> None:
    left = msgspec.structs.replace(ARRIVED, request=16, num_choices=1)
    admission = log(
        (11.0, left, [Release(16, "free", 0.0, "")]),
        (12.0, ARRIVED, []),
        (12.5, CancelRequested(8), [Withdraw(8, "client_gone")]),
    )
    scheduler = log(
        (11.0, Released(16, "free", 40, 20), []),
        (11.5, CancelRequested(16), [Finish(16, "cancelled", 0, code="client_gone")]),
    )
    recording = read_recording(admission, scheduler)
    assert (recording.requests, recording.num_left_out) == ([], 1)


def test_a_recording_without_requests_replays_to_nothing() -> None:
    recording = read_recording(log(), log())
    with pytest.raises(RecordingError, match="no executor joined"):
        fitted_device([recording], "none")
    assert recording.steps == []
    assert Simulation(SLAI, recording.requests, SMALL).run().num_steps == 0


def test_who_asked_at_the_same_time_keeps_its_own_gaps() -> None:
    twins = [TraceRequest(0.0, "a", "free", 20, 4), TraceRequest(0.0, "b", "paid", 30, 6)]
    outcome, recording = recorded(SLAI, twins, SMALL)
    assert recording.requests == [twin._replace(max_output_tokens=twin.output_tokens) for twin in twins]
    assert {name: list(gaps) for name, gaps in outcome.gaps_s.items()} == {
        "free": list(recording.gaps.seconds[recording.gaps.requests == 1]),
        "paid": list(recording.gaps.seconds[recording.gaps.requests == 2]),
    }
