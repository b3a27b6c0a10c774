"""Neighbours one version apart understand each other: bytes of protocol 1, as stored, must go on being read."""

import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest

from engine.interface import EngineInfo, Logprobs, Sampling, SequenceStart
from policies.events import HeldAtScheduler
from services import wire, wire_steps
from services.wire_handshake import Challenge, Hello, Welcome
from services.wire_parts import LogprobColumns

STORED = Path(__file__).with_name("wire_protocol_1.json")
"""Tag -> hex of one message. A message is never removed and no bytes are ever changed; new messages are added."""

ENGINE = EngineInfo(
    model="demo",
    architecture="LlamaForCausalLM",
    num_parameters=1,
    dtype="float32",
    device="cpu",
    attention="cpu_gather",
    num_blocks=8,
    block_tokens=16,
    max_sequence_tokens=64,
    vocabulary_size=300,
)
SUBMIT = wire.Submit(7, "acme", "paid", b"\1\0\0\0", 16, [Sampling(seed=3)], received_ns=5, traceparent="00-a-b-01")
SAMPLES: list[wire.Message] = [
    Challenge(b"n" * 32),
    Hello(1, "gateway", "1", 2, b"n" * 32, b"p" * 32),
    Welcome("scheduler", "0", 2, b"p" * 32),
    SUBMIT,
    wire.Dispatch(SUBMIT, "paid", 0.25, 1, queued_ns=6, released_ns=7),
    wire.Cancel(7, "client_gone"),
    wire.Stopped(7, 3),
    wire.Refused(7, "queue_full", "full", 1.5),
    wire.Admitted(7, "paid", 1, 6, 7),
    wire.TokenFrame(1, 0, 1, b"s" * 8, b"t" * 4, b"\0", b"r" * 8, 1, 2, 3, 4),
    wire.RequestEnded(7, "finished", 3),
    wire.Usage(b"s" * 8),
    wire.Capacity(1, 128, 64),
    wire_steps.ExecutorReady(ENGINE),
    wire_steps.StepMessage(1, b"", b"", b"", b"", b"", b"", [SequenceStart(7, b"\1\0\0\0", 1, Sampling())], [6]),
    wire_steps.ForgetMessage([6]),
    wire_steps.StepResult(1, b"t" * 4, b"\0", 1, 2, 3),
    wire_steps.StepFailed(1, "why"),
    wire.PolicyPrepare(2, b"version: 1"),
    wire.PolicyPrepared(2),
    wire.PolicyCommit(2),
    wire.PolicyAbort(2),
    wire.PolicyNow(2, b"version: 1"),
    wire.PolicyStatus(2, "rejected", "why"),
    wire.MirrorAsked(60.0),
    wire.MirrorState(b"core"),
    wire.MirrorRecords(b"records"),
    wire.MirrorEnded("why"),
    wire.InvalidRequest(7, "acme", "web", "key_acme_web"),
    wire.Queued(7, 3, 1.5),
    wire.EndsKept(4),
    wire.Holds([HeldAtScheduler(7, "acme", "web", "key_acme_web", "paid", 2.0, 5, 16, 1, 3)]),
    wire.ReportAsked(1, "usage", "acme", 7),
    wire.Report(1, b"{}"),
    wire.Ping(5),
    wire.Pong(5, 7, 8),
]


def tag(message: type[Any] | Any) -> str:
    return str(message.__struct_config__.tag)


def test_every_message_has_stored_bytes() -> None:
    assert {tag(kind) for kind in get_args(wire.AnyMessage)} == set(json.loads(STORED.read_text()))


@pytest.mark.parametrize("expected", SAMPLES, ids=tag)
def test_stored_bytes_still_mean_the_same(expected: wire.Message) -> None:
    stored = bytes.fromhex(json.loads(STORED.read_text())[tag(expected)])
    assert wire.decoder.decode(stored) == expected


@pytest.mark.parametrize("message", SAMPLES, ids=tag)
def test_a_field_of_a_later_version_is_ignored(message: wire.Message) -> None:
    fields = msgspec.msgpack.decode(wire.encoder.encode(message))
    later = msgspec.msgpack.encode({**fields, "of_a_later_version": [1, 2]})
    assert wire.decoder.decode(later) == message


def test_log_probabilities_come_back_as_they_were_sent() -> None:
    sent = Logprobs(np.array([0, 2, 1], np.int8), np.array([5, 9, 6], np.int32), np.array([-1, -2, 0], np.float32))
    frame = wire.TokenFrame(1, 0, 1, b"", b"", b"", b"", 1, 2, 3, 4, logprobs=LogprobColumns.pack(sent))
    decoded = wire.decoder.decode(wire.encoder.encode(frame))
    assert isinstance(decoded, wire.TokenFrame)
    assert decoded.logprobs is not None
    came = decoded.logprobs.unpack(3)
    assert [came.num_entries.tolist(), came.tokens.tolist(), came.values.tolist()] == [
        [0, 2, 1],
        [5, 9, 6],
        [-1, -2, 0],
    ]


@pytest.mark.parametrize(("num_entries", "num_rows"), [(b"\1\1", 3), (b"\2\1", 2), (b"\xff\3", 2)])
def test_log_probabilities_that_do_not_fit_their_rows_are_refused(num_entries: bytes, num_rows: int) -> None:
    with pytest.raises(ValueError, match=f"where there are {num_rows}, with 2 tokens and 2 values"):
        LogprobColumns(num_entries, b"t" * 8, b"v" * 8).unpack(num_rows)
