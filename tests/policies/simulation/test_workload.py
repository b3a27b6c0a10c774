"""Traces read, refused, and made."""

import os
import random
from math import log
from pathlib import Path

import pytest

from policies.simulation.workload import (
    TraceError,
    TraceRequest,
    at_rate,
    has_arrivals,
    read_lengths,
    read_trace,
    synthetic,
    with_arrivals,
)

DATA = Path(os.environ.get("FAIRLEAD_DATA") or Path(__file__).resolve().parents[4] / "shared" / "data")

TIMED = "arrived_at_s,client,prompt_tokens,output_tokens\n"
LENGTHS = "num_prefill_tokens,num_decode_tokens,pd_ratio\n"


def test_a_trace_with_arrivals_is_read_in_their_order() -> None:
    trace = read_trace(f"{TIMED}2.5,bob,10,20\n\n1,alice,30,40\n", "t.csv", qps=None, seed=1)
    assert trace == [TraceRequest(1.0, "alice", "free", 30, 40), TraceRequest(2.5, "bob", "free", 10, 20)]


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def test_an_azure_trace_begins_with_its_first_request() -> None:
    text = f"{AZURE}2023-11-16 18:15:50.5000000,396,109\n2023-11-16 18:15:46.2500000,374,44\n"
    trace = read_trace(text, "t.csv", qps=None, seed=1)
    assert trace == [TraceRequest(0.0, "azure", "free", 374, 44), TraceRequest(4.25, "azure", "free", 396, 109)]
    zones = [f"2024-05-10 {at},10,20\n" for at in ("01:00:00.5-01:00", "02:00:01Z", "04:30:02+0230")]
    assert [r.arrived_at_s for r in read_trace(AZURE + "".join(zones), "t.csv", qps=None, seed=1)] == [0.0, 0.5, 1.5]
    later = read_trace(f"{AZURE}2024-05-10 00:00:00.009930+00:00,2162,0\n", "t.csv", qps=None, seed=1)
    assert later == [TraceRequest(0.0, "azure", "free", 2162, 1)]


def test_a_trace_s_own_arrivals_can_be_stretched_to_another_rate() -> None:
    requests = [TraceRequest(float(second), "a", "free", 1, 1) for second in range(5)]
    faster = at_rate(requests, 2.5)
    assert [request.arrived_at_s for request in faster] == [0.0, 0.5, 1.0, 1.5, 2.0]
    with pytest.raises(TraceError, match="all requests of this trace arrive at once"):
        at_rate(requests[:1], 1.0)


def test_a_trace_that_has_arrivals_is_known_by_its_header() -> None:
    assert has_arrivals(TIMED)
    assert has_arrivals(AZURE)
    assert not has_arrivals(LENGTHS)
    assert not has_arrivals("")


def test_a_trace_may_say_what_its_prompts_have_in_common() -> None:
    header = TIMED.replace("\n", ",key_tokens,prompt_keys\n")
    (request,) = read_trace(f"{header}1,alice,17,40,16,{'0a' * 16 + 'ff' * 16}\n", "t.csv", qps=None, seed=1)
    assert (request.key_tokens, request.prompt_keys) == (16, b"\x0a" * 16 + b"\xff" * 16)
    for keys in ("0a" * 16, "zz" * 32, ""):
        with pytest.raises(TraceError, match=r"t\.csv:2: prompt_keys is `.*`; it must be 32 bytes in hexadecimal"):
            read_trace(f"{header}1,alice,17,40,16,{keys}\n", "t.csv", qps=None, seed=1)
    with pytest.raises(TraceError, match=r"t\.csv:2: key_tokens is `0`"):
        read_trace(f"{header}1,alice,17,40,0,\n", "t.csv", qps=None, seed=1)


def test_lengths_get_clipped_exponential_gaps_that_scale_with_the_rate() -> None:
    lengths = [(number, number) for number in range(1, 2001)]
    draws = random.Random(42)  # noqa: S311  the recipe's generator
    gaps = [min(-log(1 - draws.random()), 3.0) for _ in lengths]
    at = [request.arrived_at_s for request in with_arrivals(lengths, qps=2.0, seed=42)]
    assert at[0] == pytest.approx(gaps[0] / 2)
    assert at[-1] == pytest.approx(sum(gaps) / 2)
    slower = [request.arrived_at_s for request in with_arrivals(lengths, qps=1.0, seed=42)]
    assert slower == pytest.approx([2 * time for time in at])


def test_one_request_in_twenty_is_of_the_paid_tenant() -> None:
    requests = with_arrivals([(1, 1)] * 4000, qps=1.0, seed=42)
    assert 0.04 < sum(request.tier == "paid" for request in requests) / 4000 < 0.06
    assert {request.tenant for request in requests} == {"paid", "free"}


def test_the_share_of_the_paid_tenant_can_be_another() -> None:
    for share in (0.0, 0.5, 1.0):
        requests = with_arrivals([(1, 1)] * 4000, qps=1.0, seed=42, paid_share=share)
        assert sum(request.tier == "paid" for request in requests) / 4000 == pytest.approx(share, abs=0.02)


def test_lengths_are_read_alone_and_nothing_else_is_taken_for_them() -> None:
    assert read_lengths(f"{LENGTHS}1,2,0.5\n3,4,0.75\n", "t.csv") == [(1, 2), (3, 4)]
    with pytest.raises(TraceError, match=r"t\.csv:1: the header is `arrived_at_s,.*`; accepted is `num_prefill"):
        read_lengths(f"{TIMED}1,alice,30,40\n", "t.csv")


def test_another_seed_is_another_workload_and_the_same_seed_the_same() -> None:
    lengths = [(number, 1) for number in range(1, 100)]
    assert with_arrivals(lengths, qps=1.0, seed=1) == with_arrivals(lengths, qps=1.0, seed=1)
    assert with_arrivals(lengths, qps=1.0, seed=1) != with_arrivals(lengths, qps=1.0, seed=2)


@pytest.mark.parametrize(
    ("text", "qps", "sentence"),
    [
        ("a,b\n1,2\n", None, r"t.csv:1: the header is `a,b`; accepted are `arrived_at_s,client,prompt_tokens"),
        ("", None, r"t.csv:1: the header is ``"),
        (TIMED, None, "t.csv: there is no request in this trace"),
        (f"{TIMED}1,a,10,20\n2,a,10\n", None, "t.csv:3: 3 fields; the header has 4"),
        (
            f"{TIMED}1,a,ten,20\n",
            None,
            "t.csv:2: prompt_tokens is `ten`; it must be a whole number of tokens, at least 1",
        ),
        (f"{TIMED}1,a,10,0\n", None, "t.csv:2: output_tokens is `0`"),
        (f"{TIMED}-1,a,10,1\n", None, "t.csv:2: arrived_at_s is `-1`; it must be seconds since the trace's start"),
        (f"{TIMED}nan,a,10,1\n", None, "t.csv:2: arrived_at_s is `nan`"),
        (f"{TIMED}soon,a,10,1\n", None, "t.csv:2: arrived_at_s is `soon`"),
        (f"{AZURE}noon,10,20\n", None, "t.csv:2: TIMESTAMP is `noon`; it must be a date and time like 2023-11-16"),
        (f"{AZURE}2023-13-16 18:15:46,10,20\n", None, "t.csv:2: TIMESTAMP is `2023-13-16 18:15:46`"),
        (f"{AZURE}2023-11-16 18:15:46,0,20\n", None, "t.csv:2: ContextTokens is `0`"),
        (f"{TIMED}1,a,10,20\n", 2.0, "t.csv: --qps is for traces without arrival times"),
        (f"{LENGTHS}1,2,0.5\n", None, "t.csv: this trace has lengths only: say how many requests arrive a second"),
    ],
)
def test_a_trace_that_cannot_be_used_is_refused_with_file_line_and_what_is_accepted(
    text: str, qps: float | None, sentence: str
) -> None:
    with pytest.raises(TraceError) as caught:
        read_trace(text, "t.csv", qps=qps, seed=1)
    assert str(caught.value).startswith(sentence)


def test_a_synthetic_workload_has_about_its_rate_and_fits_the_model() -> None:
    requests = synthetic("chat", qps=5.0, duration_s=200.0, seed=3, max_sequence_tokens=1000)
    assert 900 < len(requests) < 1100
    assert [request.arrived_at_s for request in requests] == sorted(request.arrived_at_s for request in requests)
    assert max(request.prompt_tokens + request.output_tokens for request in requests) <= 1000
    assert {request.tier for request in requests} == {"paid", "free"}


def test_an_unknown_synthetic_workload_lists_the_known_ones() -> None:
    with pytest.raises(TraceError, match="synthetic:nope: there is no such workload; there are chat, overload"):
        synthetic("nope", qps=None, duration_s=1.0, seed=1, max_sequence_tokens=1000)


@pytest.mark.data
def test_the_published_trace_is_shuffled_in_the_published_order() -> None:
    path = DATA / "openchat_sharegpt4_lengths.csv"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    requests = read_trace(path.read_text(), str(path), qps=1.6, seed=42)
    lengths = [(request.prompt_tokens, request.output_tokens) for request in requests[:4]]
    assert lengths == [(997, 391), (1028, 49), (79, 875), (2025, 307)]
    assert len(requests) == 16_384
