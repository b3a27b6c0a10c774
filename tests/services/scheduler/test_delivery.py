import time

import numpy as np
import pytest

from engine.interface import EngineInfo, Logprobs, Sampling
from policies.commands import Deliver, StartStep, StepPlan
from services.scheduler.delivery import Delivery
from services.scheduler.executors import Executor, ResultError
from services.scheduler.sequences import Sequences
from services.telemetry.stamps import CHUNK_COLUMNS
from services.transport import Identity, inproc_pair
from services.wire import Dispatch, Submit
from services.wire_parts import LogprobColumns
from services.wire_steps import StepMessage, StepResult

GATEWAYS = (3, 9)
DECODES, PROMPTS = 0, 1
"""Stages."""
MADE = {"token_budget": 8, "decodes_of_stage": np.array([True, False, False]), "kv_use": 0.5}


def info() -> EngineInfo:
    return EngineInfo("m", "a", 1, "float32", "cpu", "none", 10, 16, 1000, 100)


def plan(sequences: list[int], samples: list[bool]) -> StepPlan:
    rows = len(sequences)
    return StepPlan(
        sequences=np.array(sequences, np.int64),
        positions=np.arange(rows, dtype=np.int32),
        num_tokens=np.array([1 if sample else 7 for sample in samples], np.int32),
        samples=np.array(samples, np.bool_),
        stages=np.array([DECODES if sample and row else PROMPTS for row, sample in enumerate(samples)], np.int8),
        num_new_blocks=np.ones(rows, np.int32),
        new_blocks=np.arange(rows, dtype=np.int32),
        starts=[],
        released=[],
    )


def result(step: int, tokens: list[int], *, launched_ns: int, computed_ns: int, ended: list[int] = ()) -> StepResult:
    flags = np.isin(np.arange(len(tokens)), ended)
    return StepResult(
        step, np.array(tokens, np.int32).tobytes(), flags.tobytes(), launched_ns, computed_ns, computed_ns + 1
    )


def request(gateway: int, number: int = 0) -> int:
    return (gateway << 32) + number


@pytest.fixture
def sequences() -> Sequences:
    held = Sequences()
    for gateway in GATEWAYS:
        prompt = np.array([1, 2, 3], np.int32).tobytes()
        submit = Submit(
            request(gateway), "t", "free", prompt, 10, [Sampling(seed=1), Sampling(seed=2)], grammar="start: /a/"
        )
        held.add(Dispatch(submit, "free", 0.0, gateway), now_ns=5)
    return held


@pytest.fixture
async def executor(recorder) -> Executor:
    theirs = recorder()
    stream, _ = inproc_pair(recorder(), theirs, identity_b=Identity("executor"))
    made = Executor(4, stream, info())
    made.theirs = theirs
    return made


async def test_a_plan_reaches_the_executor_as_bytes_and_its_result_finds_it(executor) -> None:
    executor.start(StartStep(4, 1, 2, plan([5, 6, 7], [True, False, True])), [], **MADE)
    message = await executor.theirs.message(StepMessage)
    assert np.frombuffer(message.sequences, np.int64).tolist() == [5, 6, 7]
    assert np.frombuffer(message.samples, np.bool_).tolist() == [True, False, True]
    step, event = executor.finish(result(1, [70, 80], launched_ns=0, computed_ns=1000, ended=[1]))
    assert step.tokens.tolist() == [70, 80]
    assert (event.executor, event.step, event.ended) == (4, 1, [7])
    assert (step.plan.revision, step.plan.num_prefill_tokens, step.plan.num_decode_tokens) == (2, 8, 1)


async def test_the_last_piece_of_a_prompt_is_a_piece_of_a_prompt_even_if_it_is_one_token(executor) -> None:
    mixed = plan([5, 6, 7, 8], [True, True, True, True])
    mixed.stages[:] = [DECODES, PROMPTS, DECODES, -1]
    executor.start(StartStep(4, 1, 2, mixed), [], **MADE)
    step, _ = executor.finish(result(1, [70, 80, 90, 91], launched_ns=0, computed_ns=1000))
    assert (step.plan.num_prefill_tokens, step.plan.num_decode_tokens) == (2, 2)
    assert step.plan.chunks == [(6, 1), (8, 1)]


async def test_step_time_counts_from_the_end_of_the_step_before_when_that_is_later(executor) -> None:
    for step in (1, 2):
        executor.start(StartStep(4, step, 1, plan([5], [True])), [], **MADE)
    executor.finish(result(1, [7], launched_ns=0, computed_ns=1_000_000_000))
    _, event = executor.finish(result(2, [7], launched_ns=500_000_000, computed_ns=1_250_000_000))
    assert event.step_time_s == 0.25


async def test_the_age_of_a_result_is_bounded_whatever_the_clocks_say(executor) -> None:
    for step in (1, 2):
        executor.start(StartStep(4, step, 1, plan([5], [True])), [], **MADE)
    _, old = executor.finish(result(1, [7], launched_ns=0, computed_ns=1))
    _, future = executor.finish(result(2, [7], launched_ns=0, computed_ns=time.monotonic_ns() + 10**12))
    assert (old.ended_ago_s, future.ended_ago_s) == (1.0, 0.0)


async def test_a_result_out_of_order_or_of_another_size_is_an_error(executor) -> None:
    with pytest.raises(ResultError, match="a result of step 1; expected none"):
        executor.finish(result(1, [], launched_ns=0, computed_ns=1))
    executor.start(StartStep(4, 2, 1, plan([5], [True])), [], **MADE)
    with pytest.raises(ResultError, match="a result of step 3; expected step 2"):
        executor.finish(result(3, [7], launched_ns=0, computed_ns=1))
    with pytest.raises(ResultError, match="step 2 sampled 1 tokens, its result has 8 bytes of tokens and 2 flags"):
        executor.finish(result(2, [7, 8], launched_ns=0, computed_ns=1))


async def test_tokens_go_to_their_gateways_in_one_frame_each(executor, sequences) -> None:
    first, second = (request(gateway) for gateway in GATEWAYS)
    executor.start(StartStep(4, 1, 6, plan([first, second, first + 1], [True, True, True])), [], **MADE)
    step, _ = executor.finish(result(1, [10, 20, 11], launched_ns=50, computed_ns=100))
    delivery = Delivery(Deliver(4, 1, np.array([0, 1, 2], np.int32), np.array([0, 1, 2], np.int8)), step, sequences)
    frames = dict(delivery.frames())
    assert {gateway: np.frombuffer(frame.tokens, np.int32).tolist() for gateway, frame in frames.items()} == {
        3: [10, 11],
        9: [20],
    }
    assert np.frombuffer(frames[3].sequences, np.int64).tolist() == [first, first + 1]
    assert frames[3].finish == bytes([0, 2])
    assert (frames[9].executor, frames[9].revision, frames[9].computed_ns) == (4, 6, 100)


async def test_log_probabilities_go_with_their_tokens(executor, sequences) -> None:
    first, second = (request(gateway) for gateway in GATEWAYS)
    executor.start(StartStep(4, 1, 6, plan([first, second, first + 1], [True, True, True])), [], **MADE)
    ended = result(1, [10, 20, 11], launched_ns=50, computed_ns=100)
    flat = Logprobs(np.array([2, 0, 1], np.int8), np.array([10, 7, 11], np.int32), np.array([1, 2, 3], np.float32))
    ended.logprobs = LogprobColumns.pack(flat)
    step, _ = executor.finish(ended)
    delivery = Delivery(Deliver(4, 1, np.array([0, 1, 2], np.int32), np.zeros(3, np.int8)), step, sequences)
    frames = dict(delivery.frames())
    there = frames[3].logprobs.unpack(2)
    assert (there.num_entries.tolist(), there.tokens.tolist(), there.values.tolist()) == (
        [2, 1],
        [10, 7, 11],
        [1, 2, 3],
    )
    assert frames[9].logprobs is None
    [(_, frame)] = Delivery(Deliver(4, 1, np.array([2], np.int32), np.zeros(1, np.int8)), step, sequences).frames()
    assert frame.logprobs.unpack(1).tokens.tolist() == [11]


async def test_log_probabilities_of_another_number_of_rows_are_an_error(executor) -> None:
    executor.start(StartStep(4, 1, 1, plan([5], [True])), [], **MADE)
    ended = result(1, [7], launched_ns=0, computed_ns=1)
    ended.logprobs = LogprobColumns(b"", b"", b"")
    with pytest.raises(ResultError, match="step 1: log-probabilities of 0 rows where there are 1"):
        executor.finish(ended)


async def test_vectors_go_to_their_gateways_and_their_tokens_are_not_charged(executor, sequences) -> None:
    first, second = (request(gateway) for gateway in GATEWAYS)
    executor.start(StartStep(4, 1, 6, plan([first, second, first + 1], [True, True, True])), [], **MADE)
    returned = result(1, [10, 20, 11], launched_ns=50, computed_ns=100)
    returned.vectors = {second: b"second", first + 1: b"first", 99: b"cancelled meanwhile"}
    step, _ = executor.finish(returned)
    delivery = Delivery(Deliver(4, 1, np.array([0, 1, 2], np.int32), np.array([0, 2, 2], np.int8)), step, sequences)
    assert {gateway: frame.vectors for gateway, frame in delivery.frames()} == {
        3: {first + 1: b"first"},
        9: {second: b"second"},
    }
    assert delivery.charged.tolist() == [first]


async def test_a_token_was_ready_when_the_one_before_was_computed(executor, sequences) -> None:
    first = request(GATEWAYS[0])
    ready = []
    for number in (1, 2):
        executor.start(StartStep(4, number, 1, plan([first], [True])), [], **MADE)
        step, _ = executor.finish(result(number, [10], launched_ns=0, computed_ns=100 * number))
        delivery = Delivery(Deliver(4, number, np.array([0], np.int32), np.zeros(1, np.int8)), step, sequences)
        ready += [np.frombuffer(frame.ready_ns, np.int64).tolist() for _, frame in delivery.frames()]
    assert ready == [[5], [100]]


async def test_the_first_token_of_a_request_says_what_its_first_start_found(executor, sequences) -> None:
    first, second = (request(gateway) for gateway in GATEWAYS)
    for sequence, num_cached in ((first, 2), (first, 1), (first + 1, 2), (second, 0)):
        sequences.start(sequence, num_cached)
    hits = []
    for number in (1, 2):
        executor.start(StartStep(4, number, 1, plan([first, first + 1, second], [True] * 3)), [], **MADE)
        step, _ = executor.finish(result(number, [7, 8, 9], launched_ns=0, computed_ns=number))
        command = Deliver(4, number, np.arange(3, dtype=np.int32), np.zeros(3, np.int8))
        delivery = Delivery(command, step, sequences)
        hits.append((delivery.prefix_hits, [frame.prefix_hits for _, frame in delivery.frames()]))
    assert hits == [([(first, 2)], [[(first, 2)], []]), ([], [[], []])]


async def test_the_first_token_says_the_pieces_of_the_prompt_also_a_last_one_of_one_token(executor, sequences) -> None:
    first = request(GATEWAYS[0])
    frames = []
    for number, num_made in ((1, 0), (2, 1), (3, 1)):
        rows = plan([first], [bool(num_made)])
        rows.positions[:] = 7 * (number - 1)
        executor.start(StartStep(4, number, 1, rows), [], **MADE)
        step, _ = executor.finish(result(number, [7] * num_made, launched_ns=number, computed_ns=number))
        sequences.note_chunks(step)
        command = Deliver(4, number, np.arange(num_made, dtype=np.int32), np.zeros(num_made, np.int8))
        frames += [frame for _, frame in Delivery(command, step, sequences).frames()]
    chunks = [np.frombuffer(frame.chunks.get(first, b""), np.int64).reshape(-1, len(CHUNK_COLUMNS)) for frame in frames]
    assert [[(step, tokens) for step, tokens, *_ in table.tolist()] for table in chunks] == [[(1, 7), (2, 1)], []]


async def test_the_rows_that_fill_a_block_are_noted_with_their_plan(executor) -> None:
    rows = plan([5, 6, 7], [True, True, False])
    rows.positions[:] = (15, 14, 10)
    executor.start(StartStep(4, 1, 1, rows), [], **MADE)
    step, _ = executor.finish(result(1, [70, 80], launched_ns=0, computed_ns=1000))
    assert (step.plan.filling.tolist(), step.plan.filled_to.tolist()) == ([5, 7], [16, 17])


async def test_a_plans_copies_reach_the_executor(executor) -> None:
    rows = plan([5], [True])
    rows.copied, rows.copies = np.array([3, 4], np.int32), np.array([8, 9], np.int32)
    executor.start(StartStep(4, 1, 1, rows), [], **MADE)
    message = await executor.theirs.message(StepMessage)
    copies = [np.frombuffer(each, np.int32).tolist() for each in (message.copied, message.copies)]
    assert copies == [[3, 4], [8, 9]]


async def test_a_sequence_starts_again_with_its_prompt_and_the_tokens_delivered(executor, sequences) -> None:
    first = request(GATEWAYS[0])
    executor.start(StartStep(4, 1, 1, plan([first, first + 1], [True, True])), [], **MADE)
    step, _ = executor.finish(result(1, [10, 11], launched_ns=0, computed_ns=1))
    Delivery(Deliver(4, 1, np.array([1], np.int32), np.zeros(1, np.int8)), step, sequences)
    starts = [sequences.start(first, 0), sequences.start(first + 1, 0)]
    assert [np.frombuffer(start.tokens, np.int32).tolist() for start in starts] == [[1, 2, 3], [1, 2, 3, 11]]
    assert [(start.num_prompt_tokens, start.sampling.seed) for start in starts] == [(3, 1), (3, 2)]
    assert {start.grammar for start in starts} == {"start: /a/"}
    sequences.remove(first)
    assert first not in sequences
    assert list(sequences.by_id) == [request(9), request(9, 1)]
