"""Admission, scheduler and a paced executor joined over Unix sockets, with a gateway that the test plays."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from joined_services import BLOCK_TOKENS, GATEWAY, NUM_BLOCKS, POLICY, House, expected, no_stop

from policies.admission.core import AdmissionCore
from policies.commands import FinishReason
from policies.event_log import read_records, verify
from policies.events import TokensProduced
from policies.scheduling.core import SchedulerCore
from policies.scheduling.prefixes import KEY_BYTES
from services.admission import policy_files
from services.traffic import gaps
from services.traffic.reading import read_fleet
from services.wire import (
    Admitted,
    Cancel,
    PolicyCommit,
    PolicyPrepare,
    PolicyPrepared,
    PolicyStatus,
    Refused,
    Stopped,
    TokenFrame,
)


@pytest.fixture
async def house(tmp_path: Path, recorder, monkeypatch):
    monkeypatch.setattr(policy_files, "POLL_S", 0.005)
    made = await House(tmp_path, recorder()).start()
    yield made
    await made.stop()


async def test_tokens_arrive_in_order_and_complete_for_every_request(house) -> None:
    sizes = [(5 + 7 * index % 60, 1 + index % 9) for index in range(24)]
    requests = [house.submit(prompt, output) for prompt, output in sizes]
    for request in requests:
        ended = await house.ended(request)
        assert (ended.outcome, ended.output_tokens) == ("finished", sizes[requests.index(request)][1])
    assert house.tokens() == {
        request: expected(request, prompt, output) for request, (prompt, output) in zip(requests, sizes, strict=True)
    }
    released = [message for message in house.gateway.messages if isinstance(message, Admitted)]
    assert sorted(each.request for each in released) == requests


async def test_every_choice_of_a_request_gets_its_own_tokens(house) -> None:
    request = house.submit(20, 4, num_choices=3)
    assert (await house.ended(request)).output_tokens == 12
    assert house.tokens() == {request + choice: expected(request + choice, 20, 4) for choice in range(3)}


async def test_an_output_that_the_executor_cannot_make_ends_its_request_alone(house) -> None:
    wrong, right = house.submit(num_choices=2, grammar="start: /a+/"), house.submit(20, 4)
    ended = await house.ended(wrong)
    assert (ended.outcome, ended.code, ended.output_tokens) == ("error", "output_failed", 0)
    assert "keeps to no grammar" in ended.message
    assert (await house.ended(right)).outcome == "finished"
    assert house.tokens() == {right: expected(right, 20, 4)}


async def test_an_embedding_is_charged_its_prompt_and_shows_no_output(house) -> None:
    embedded = [house.submit(prompt, 1, pooling="mean", shares_prefix=False) for prompt in (700, 20, 20)]
    beside = house.submit(20, 4)
    for request in embedded:
        ended = await house.ended(request)
        assert (ended.outcome, ended.output_tokens) == ("finished", 0)
    await house.ended(beside)
    vectors = {sequence: vector for frame in house.frames for sequence, vector in frame.vectors.items()}
    assert {request: np.frombuffer(vector, np.float32)[0] for request, vector in vectors.items()} == {
        request: request % 2**16 for request in embedded
    }
    await house.stop()
    house.stop = no_stop
    log = (Path(house.deployment.record) / "admission.log").read_bytes()
    events = [record.event for record in read_records(log)]
    produced = [sequence for event in events if isinstance(event, TokensProduced) for sequence in event.sequences]
    assert produced == [beside] * 4


async def test_the_first_frame_of_a_request_says_how_much_of_its_prompt_was_found(house) -> None:
    first = house.submit(40, 30)
    await house.ended(first)
    again = house.submit(40, 4, num_choices=3)
    await house.ended(again)
    # The next turn of a chat: the first request's prompt, its output, and more.
    said = [*range(40), *expected(first, 40, 30), 1, 2, 3]
    later = house.submit(said, 4)
    await house.ended(later)
    longer = house.submit(said, 4, shares_prefix=False)
    await house.ended(longer)
    assert [frame.prefix_hits for frame in house.frames if frame.prefix_hits] == [[(again, 39)], [(later, 64)]]
    sequences = {request + choice: 40 for request, choice in ((first, 0), (again, 0), (again, 1), (again, 2))}
    for sequence, length in (sequences | {later: len(said), longer: len(said)}).items():
        tokens = house.tokens()[sequence]
        assert tokens == expected(sequence, length, len(tokens))


async def test_stamps_of_a_frame_are_in_the_order_of_a_tokens_way(house) -> None:
    await house.ended(house.submit())
    for frame in house.frames:
        ready = np.frombuffer(frame.ready_ns, np.int64)
        assert frame.planned_ns <= frame.launched_ns <= frame.computed_ns <= frame.returned_ns
        assert (ready <= frame.computed_ns).all()
        assert frame.revision == 1
    assert house.frames[-1].finish == bytes([FinishReason.LENGTH])


async def test_a_cancelled_request_frees_its_blocks_and_others_go_on(house) -> None:
    # Both cannot be held at once beside the first: it must be gone before the second gets its blocks.
    size = BLOCK_TOKENS * NUM_BLOCKS
    long = house.submit(size // 2, size // 2 - 20)
    await house.gateway.message(TokenFrame, 3)
    waiting = house.submit(size - 100, 10)
    for link in house.links.values():
        link.stream.send(Cancel(long))
    assert (await house.ended(long)).outcome == "cancelled"
    ended = await house.ended(waiting)
    assert (ended.outcome, ended.output_tokens) == ("finished", 10)
    assert house.tokens()[waiting] == expected(waiting, size - 100, 10)


async def test_a_cancel_that_comes_before_its_request_is_not_forgotten(house) -> None:
    early = (GATEWAY << 32) + house.number
    house.links["scheduler"].stream.send(Cancel(early, "client_gone"))
    # It has been read when the scheduler knows of it; nobody is told.
    async with asyncio.timeout(30):
        while not house.scheduler._early_cancels._reasons:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert house.submit(20, 900) == early
    ended = await house.ended(early)
    assert (ended.outcome, ended.output_tokens, ended.code) == ("cancelled", 0, "client_gone")
    other = house.submit(20, 5)
    assert (await house.ended(other)).output_tokens == 5
    assert house.tokens().keys() == {other}


async def test_a_stop_string_found_by_the_gateway_ends_a_request_with_the_tokens_that_count(house) -> None:
    request = house.submit(20, 900)
    await house.gateway.message(TokenFrame, 3)
    house.links["scheduler"].stream.send(Stopped(request, 2))
    ended = await house.ended(request)
    assert (ended.outcome, ended.output_tokens) == ("finished", 2)


async def test_a_request_that_no_executor_can_hold_is_refused_with_the_limit(house) -> None:
    request = house.submit(BLOCK_TOKENS * NUM_BLOCKS, 10)
    refused = await house.gateway.message(Refused)
    assert (refused.request, refused.code) == (request, "context_length_exceeded")
    assert "1024" in refused.message


async def test_a_gateway_that_leaves_has_its_requests_cancelled(house) -> None:
    house.submit(20, 900)
    await house.gateway.message(TokenFrame, 2)
    await house.links.pop("scheduler").close()
    await house.links.pop("admission").close()
    async with asyncio.timeout(30):
        while house.scheduler._sequences.by_id:  # noqa: ASYNC110  nobody is told of it
            await asyncio.sleep(0)


async def test_a_saved_policy_is_used_by_all_without_losing_a_token(house) -> None:
    request = house.submit(20, 300)
    await house.gateway.message(TokenFrame)
    for revision in range(2, 6):
        house.policy.write_bytes(POLICY.read_bytes() + b"# save %d\n" % revision)
        prepare = await house.gateway.message(PolicyPrepare, revision - 1)
        house.links["admission"].stream.send(PolicyPrepared(prepare.revision))
        await house.gateway.message(PolicyCommit, revision - 1)
    house.policy.write_bytes(b"version: 1\n")
    rejected = 0
    while rejected != 5:
        rejected += 1
        status = await house.gateway.message(PolicyStatus, rejected)
    assert (status.revision, status.outcome) == (5, "rejected")
    await house.ended(request)
    last = house.submit(20, 5)
    await house.ended(last)
    assert house.tokens() == {request: expected(request, 20, 300), last: expected(last, 20, 5)}
    assert house.frames[-1].revision == 5


async def test_an_executor_that_dies_is_a_pause_and_no_token_is_lost_or_repeated(house) -> None:
    request = house.submit(20, 200)
    await house.gateway.message(TokenFrame, 20)
    dying, thread = house.threads[0]
    dying.over = True
    next(iter(house.scheduler._fleet.executors.values())).stream.close()
    await asyncio.to_thread(thread.join, 10)
    house.add_executor()
    assert (await house.ended(request)).output_tokens == 200
    assert house.tokens() == {request: expected(request, 20, 200)}


async def test_recorded_logs_replay_to_the_identical_commands(house) -> None:
    requests = [house.submit(10 * index + 1, 5 + index) for index in range(8)]
    house.links["scheduler"].stream.send(Cancel(requests[-1]))
    for request in requests:
        await house.ended(request)
    await house.stop()
    house.stop = no_stop
    record = Path(house.deployment.record)
    for core, name in ((AdmissionCore(), "admission"), (SchedulerCore(), "scheduler")):
        records = list(read_records((record / f"{name}.log").read_bytes()))
        assert len(records) > 10
        assert verify(core, records) is None


async def test_the_traffic_is_measured_for_whoever_plans_with_it(house) -> None:
    request = house.submit(40, 30, num_choices=2)
    measured = (await house.ended(request)).measured
    assert measured.slo_class == "free"
    assert measured.ttft_s > 0.001
    assert gaps.unpack(measured.gaps).total() == 2 * 29
    # Of any length: after one that came late the next ones catch up.
    assert gaps.percentile_s(gaps.unpack(measured.gaps), 1.0) > 0
    assert (measured.key_tokens, len(measured.prompt_keys)) == (BLOCK_TOKENS, 3 * KEY_BYTES)
    await house.stop()
    house.stop = no_stop
    recorded = read_fleet(house.deployment.data)
    assert recorded.fleet[3:] == (NUM_BLOCKS, BLOCK_TOKENS, 4096, 2, True)
    assert sum(step.prefill_tokens for step in recorded.steps) == 40
    decodes = [step for step in recorded.steps if step.decodes == 2]
    assert len(decodes) > 10  # one that is late takes less of the next one's millisecond; together they take theirs
    assert decodes[-1].ended_at_s - decodes[0].begun_at_s >= 0.001 * (len(decodes) - 1)
    for step in decodes:
        assert step.planned_at_s <= step.ended_at_s <= step.heard_at_s
