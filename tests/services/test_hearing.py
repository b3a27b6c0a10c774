"""What a service takes from a neighbour, and that what no neighbour could mean never gets further than the codec."""

import math
import struct
from typing import get_args

import msgspec
import numpy as np
import pytest

from engine.interface import EngineInfo, EngineSettings, Sampling, SequenceStart, Step
from engine.paced import PacedEngine
from policies.events import HeldAtScheduler
from services.executor.checking import problem
from services.framing import FrameError, Identity, UnknownMessageError, decode_message
from services.hearing import HEARS, Hearing
from services.inproc import inproc_pair
from services.transport import Link, listen
from services.wire import (
    Admitted,
    AnyMessage,
    Cancel,
    Capacity,
    Dispatch,
    Holds,
    PolicyNow,
    Queued,
    Submit,
    TokenFrame,
    Usage,
    encoder,
)
from services.wire_handshake import Challenge, Hello, Welcome
from services.wire_operator import MirrorEnded, MirrorRecords, MirrorState, Ping, Pong, Report
from services.wire_steps import ExecutorReady, StepMessage, StepResult

SECRET = b"s" * 32
INFO = EngineInfo("demo", "Llama", 1, "float32", "cpu", "none", 8, 16, 64, 100)
SUBMIT = Submit(7, "acme", "paid", b"\1\0\0\0", 16, [Sampling()])


async def test_a_neighbour_is_heard_only_on_what_is_its_matter(recorder, caplog) -> None:
    inner, mine = recorder(), recorder()
    hearing = Hearing("scheduler", inner)
    executor, _ = inproc_pair(mine, hearing, identity_a=Identity("executor"))
    for _ in range(11):
        executor.send(PolicyNow(1, b"version: 1"))
    executor.send(StepResult(1, b"", b"", 1, 2, 3))
    await inner.count("received StepResult")
    assert not [event for event in inner.events if event.startswith("received Policy")]
    assert [record.message.split(";")[1] for record in caplog.records] == [
        f" {count} of them ignored so far" for count in (1, 10)
    ]


async def test_a_message_of_an_unknown_kind_is_ignored_and_the_stream_goes_on(tmp_path, recorder, caplog) -> None:
    heard, mine = recorder(), recorder()
    address = f"unix://{tmp_path}/s.sock"
    listener = await listen(address, Identity("scheduler"), SECRET, heard)
    link = Link(address, Identity("gateway", "1"), SECRET, mine)
    link.start()
    await mine.count("opened")
    body = msgspec.msgpack.encode({"t": "of_a_later_version", "x": [1]})
    link._connection._transport.write(struct.pack("<I", len(body)) + body)
    link.stream.send(Cancel(1))
    await heard.count("received Cancel")
    assert "gateway 1 sent a message of the unknown kind `of_a_later_version`" in caplog.text
    await link.close()
    await listener.close()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x81\xa1t\xa4\xff\xfe\xfd\xfc",  # text that is no UTF-8
        b"\x91" * 5000,
        b"\x81\xa1t" * 2000,
        b"\xdd\xff\xff\xff\xff",
        msgspec.msgpack.encode({"t": "cancel"}),
        msgspec.msgpack.encode({"t": 5}),
        msgspec.msgpack.encode([1, 2]),
    ],
)
def test_bytes_that_are_no_message_are_refused_and_nothing_else_happens(body: bytes) -> None:
    with pytest.raises(FrameError, match="malformed frame"):
        decode_message(body)


def test_an_unknown_kind_is_told_apart_from_a_malformed_message() -> None:
    with pytest.raises(UnknownMessageError, match="`later`"):
        decode_message(msgspec.msgpack.encode({"t": "later"}))


def altered(message, **fields) -> bytes:
    return msgspec.msgpack.encode({**msgspec.msgpack.decode(encoder.encode(message)), **fields})


@pytest.mark.parametrize(
    "body",
    [
        altered(SUBMIT, max_output_tokens=2**62),
        altered(SUBMIT, max_output_tokens=-1),
        altered(SUBMIT, weight=math.nan),
        altered(SUBMIT, weight=0),
        altered(SUBMIT, request=2**63 - 1),
        altered(SUBMIT, prompt=b""),
        altered(SUBMIT, prompt=b"abc"),
        altered(SUBMIT, sampling=[]),
        altered(SUBMIT, sampling=[{"seed": 2**64 - 1}]),
        altered(SUBMIT, sampling=[{"temperature": math.nan}]),
        altered(SUBMIT, tenant="x" * 2000),
        altered(Dispatch(SUBMIT, "paid", 0.0, 1), waited_s=math.inf),
        altered(Capacity(1, 2, 3), kv_tokens=-5),
        altered(ExecutorReady(INFO), info={**msgspec.to_builtins(INFO), "num_blocks": 2**40}),
        altered(ExecutorReady(INFO), info={**msgspec.to_builtins(INFO), "block_tokens": 0}),
        altered(Usage(b""), sequences=b"1234567"),
        altered(Usage(b""), prefix_hits=[[1, -4]]),
        altered(Holds([]), requests=[msgspec.to_builtins(HeldAtScheduler(1, "a", "b", "c", "d", 1.0, 1, 1, 2**40, 1))]),
        altered(Queued(1, 2, 0.5), expected_wait_s=math.nan),
        altered(Admitted(1, "paid", 1, 0, 0), waits_s={"limits": -1.0}),
        altered(TokenFrame(1, 0, 1, b"s" * 8, b"t" * 4, b"\0", b"r" * 8, 1, 2, 3, 4), finish=b""),
        altered(TokenFrame(1, 0, 1, b"s" * 8, b"t" * 4, b"\0", b"r" * 8, 1, 2, 3, 4), causes=b"\1\1"),
        altered(StepResult(1, b"t" * 4, b"\0", 1, 2, 3), ended=b"\0\0"),
        altered(StepMessage(1, b"", b"", b"", b"", b"", b"", [], []), samples=b"\1"),
        altered(StepMessage(1, b"", b"", b"", b"", b"", b"", [], []), copied=b"\0\0\0\0"),
        altered(PolicyNow(1, b""), revision=0),
    ],
)
def test_what_no_neighbour_can_mean_does_not_decode(body: bytes) -> None:
    with pytest.raises(FrameError, match="malformed frame"):
        decode_message(body)


def step(**fields) -> Step:
    one = np.array([1], np.int32)
    whole = Step(
        step=1,
        sequences=np.array([7], np.int64),
        positions=np.array([0], np.int32),
        num_tokens=one,
        samples=np.array([True]),
        num_new_blocks=one,
        new_blocks=np.array([3], np.int32),
        starts=[SequenceStart(7, b"\1\0\0\0", 1, Sampling())],
        released=[],
    )
    return msgspec.structs.replace(whole, **fields)


def test_a_step_that_fits_its_engine_is_computed() -> None:
    assert problem(step(), INFO) == ""
    assert problem(step(), PacedEngine(EngineSettings(kind="paced"), 100, 64).info) == ""


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"positions": np.array([-1], np.int32)}, "before 0"),
        ({"positions": np.array([2**31 - 1], np.int32)}, "at most 64 tokens"),
        ({"num_tokens": np.array([0], np.int32)}, "no tokens"),
        ({"num_new_blocks": np.array([-1], np.int32)}, "less than no new blocks"),
        ({"num_new_blocks": np.array([2], np.int32)}, "2 new blocks are announced and 1 are there"),
        ({"new_blocks": np.array([8], np.int32)}, "not one of the 8"),
        ({"copies": np.array([-1], np.int32)}, "not one of the 8"),
        ({"starts": [SequenceStart(7, b"\x64\0\0\0", 1, Sampling())]}, "not one of the 100"),
        ({"starts": [SequenceStart(7, b"\1\0\0\0", 1, Sampling(logit_bias={100: 1.0}))]}, "not one of the 100"),
        ({"starts": [SequenceStart(7, bytes(4 * 65), 1, Sampling())]}, "begins with 65 tokens"),
        ({"starts": [SequenceStart(7, b"\1\0\0\0", 1, Sampling(), pooling="max")]}, "no pooling `max`"),
    ],
)
def test_a_step_that_does_not_fit_its_engine_is_refused_with_the_reason(fields, why: str) -> None:
    assert why in problem(step(**fields), INFO)


def test_every_kind_of_message_is_somebodys_to_hear() -> None:
    heard = {kind for neighbours in HEARS.values() for kinds in neighbours.values() for kind in kinds}
    below = {Challenge, Hello, Welcome, Ping, Pong}
    to_operators = {MirrorState, MirrorRecords, MirrorEnded, Report}
    assert set(get_args(AnyMessage)) == heard | below | to_operators
