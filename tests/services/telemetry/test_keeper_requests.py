"""Requests put together from records: every token in its place, whatever batch it came with."""

import gc

from hypothesis import given
from hypothesis import strategies as st

from services.telemetry.keeper.requests import Open
from services.telemetry.keeper.rows import WRITTEN
from services.telemetry.records import Ended, Written
from tests.services.telemetry.records import began, let, step


def test_tokens_of_two_streams_are_told_apart_and_their_parts_are_the_time_between() -> None:
    known = Open()
    for request in (1, 2):
        known.begin(began(request))
        known.let(let(request))
    known.step(step(1, [1, 2], [195, 196]))
    known.step(step(2, [2], [295]))
    known.step(step(3, [1, 2], [395, 397]))
    batch = known.batch()
    assert sorted(batch.gaps_ns.tolist()) == [99, 102, 200]
    assert (batch.parts.sum(axis=1) == batch.gaps_ns).all()
    request = known.end(Ended(2, "finished", "", 3, 400))
    assert request is not None
    assert request.outputs[2].stamps()[:, WRITTEN].tolist() == [196, 295, 397]
    parts = request.first_parts()
    assert parts is not None
    assert sum(parts) == 196 - 10
    assert parts[:6] == [10, 20, 10, 20, 0, 40], "what admission itself took is on the way through it"


def test_tokens_that_were_held_get_the_time_at_which_they_were_written() -> None:
    known = Open()
    known.begin(began(1))
    known.step(step(1, [1], [0]))
    assert not len(known.batch().gaps_ns)
    known.step(step(2, [1], [0]))
    known.written(Written([1], 500))
    known.step(step(6, [1], [690]))
    batch = known.batch()
    assert batch.gaps_ns.tolist() == [0, 190]
    request = known.end(Ended(1, "finished", "", 3, 700))
    assert request is not None
    assert request.outputs[1].stamps()[:, WRITTEN].tolist() == [500, 500, 690]


def test_what_nobody_announced_is_counted_and_dropped() -> None:
    known = Open()
    known.step(step(1, [7, 7], [1, 2]))
    assert not known.batch().owners
    assert known.num_unknown == 2


def test_a_request_without_a_token_has_no_parts() -> None:
    known = Open()
    known.begin(began(1))
    request = known.end(Ended(1, "refused", "queue_full", 0, 50))
    assert request is not None
    assert request.first_parts() is None
    assert known.end(Ended(1, "refused", "queue_full", 0, 50)) is None


@given(st.lists(st.tuples(st.sampled_from(["direct", "held", "flush", "batch"]), st.integers(1, 3)), max_size=60))
def test_no_token_is_lost_or_doubled_however_records_fall_into_batches(events: list[tuple[str, int]]) -> None:
    known = Open()
    for request in (1, 2, 3):
        known.begin(began(request))
    now, steps = 1000, 0
    held: dict[int, int] = {1: 0, 2: 0, 3: 0}
    expected: dict[int, list[int]] = {1: [], 2: [], 3: []}
    num_gaps = 0
    for kind, sequence in events:
        now += 10
        if kind == "direct" and not held[sequence]:
            steps += 1
            known.step(step(steps, [sequence], [now]))
            expected[sequence].append(now)
        elif kind == "held":
            steps += 1
            known.step(step(steps, [sequence], [0]))
            held[sequence] += 1
        elif kind == "flush":
            known.written(Written([sequence], now))
            expected[sequence] += [now] * held[sequence]
            held[sequence] = 0
        elif kind == "batch":
            num_gaps += len(known.batch().gaps_ns)
    num_gaps += len(known.batch().gaps_ns)
    assert num_gaps == sum(max(len(times) - 1, 0) for times in expected.values())
    for sequence, times in expected.items():
        output = known.requests[sequence].outputs[sequence]
        assert output.stamps()[:, WRITTEN].tolist() == times
        assert sum(map(len, output.held)) == held[sequence]


def test_a_request_that_is_forgotten_is_freed_at_once() -> None:
    known = Open()
    known.begin(began(1, num_choices=2))
    known.step(step(1, [1, 2], [195, 196]))
    known.batch()
    request = known.end(Ended(1, "finished", "", 2, 400))
    assert request is not None
    holders = [each for each in gc.get_referrers(*request.outputs.values()) if each is not request.outputs]
    assert holders == []
    assert [each for output in request.outputs.values() for each in gc.get_referents(output) if each is request] == []
