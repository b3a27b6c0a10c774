"""The fault runs can fail: their readers notice what a fault may do to a stream."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web

from ops.bench.chaos_asks import KINDS, Ask, Said, asks
from ops.bench.chaos_house import TROUBLE
from ops.bench.chaos_load import House, Load

SEED = 3
ASK = Ask("greedy", "/v1/completions", {"stream": True})
RIGHT = Said(["one two"], ["length"], [[]], [[]], prompt_tokens=3, output_tokens=2)


def event(text: str, reason: str | None = None, usage: dict[str, Any] | None = None) -> bytes:
    choices = [] if usage else [{"index": 0, "text": text, "finish_reason": reason}]
    return b"data: " + json.dumps({"choices": choices, "usage": usage}).encode() + b"\n\n"


def usage(output_tokens: int) -> bytes:
    counts = {"prompt_tokens": 3, "completion_tokens": output_tokens}
    return event("", usage=counts | {"prompt_tokens_details": {"cached_tokens": 0}})


DONE = b"data: [DONE]\n\n"
WHOLE = [event("one"), event(" two"), event("", "length"), usage(2), DONE]
LOST = b'data: {"error":{"message":"the scheduler was lost"}}\n\n'


@asynccontextmanager
async def speaker(pieces: list[bytes], *, break_off: bool = False) -> AsyncIterator[House]:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        if break_off:
            assert request.transport is not None
            request.transport.abort()
        return response

    application = web.Application()
    application.router.add_post("/v1/completions", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield House(runner.addresses[0][1], "")
    await runner.cleanup()


async def read(pieces: list[bytes], *, break_off: bool = False, lost: bool = False) -> Load:
    async with speaker(pieces, break_off=break_off) as house:
        load = Load(house, [ASK], right=[RIGHT], num_streams=1, seed=SEED)
        reading = asyncio.ensure_future(load.run())
        if lost:
            load.num_lost = Struck()
        await load.pieces(1)
        load.over = True
        await reading
    return load


class Struck(Counter[int]):
    """Every connection is cut, after it was made."""

    def __getitem__(self, port: int) -> int:
        self[port] = super().__getitem__(port) + 1
        return super().__getitem__(port)


async def test_a_right_answer_is_complete_and_counted() -> None:
    tally = (await read(WHOLE)).tally
    assert tally.problems == []
    assert tally.num["complete"] >= 1
    assert (tally.prompt_tokens, tally.output_tokens) == (3 * tally.num["complete"], 2 * tally.num["complete"])


@pytest.mark.parametrize(
    ("pieces", "what", "why"),
    [
        ([event("one"), event(" too"), *WHOLE[2:]], "wrong", "choice 0 is 'one too', not 'one two'"),
        ([event("one"), event("one"), *WHOLE[1:]], "wrong", "choice 0 is 'oneone two'"),
        ([*WHOLE[:2], event("", "stop"), *WHOLE[3:]], "wrong", "reasons"),
        ([*WHOLE[:3], usage(3), DONE], "wrong", "output_tokens: 3, not 2"),
        ([event("one"), LOST], "failed", "the scheduler was lost"),
        (WHOLE[:2], "failed", "without its last event"),
    ],
)
async def test_a_changed_repeated_or_unfinished_answer_is_a_problem(pieces: list[bytes], what: str, why: str) -> None:
    tally = (await read(pieces)).tally
    assert tally.num[what] >= 1
    assert why in tally.problems[0]


async def test_a_broken_connection_is_a_problem_unless_its_gateway_was_killed() -> None:
    assert "whose gateway was not killed" in (await read(WHOLE[:1], break_off=True)).tally.problems[0]
    tally = (await read(WHOLE[:1], break_off=True, lost=True)).tally
    assert tally.problems == []
    assert tally.num["cut"] >= 1


async def test_what_a_killed_gateway_had_sent_must_have_been_right() -> None:
    tally = (await read([event("two")], break_off=True, lost=True)).tally
    assert "choice 0 began with 'two'" in tally.problems[0]


def test_the_catalogue_has_every_kind_and_is_the_same_for_the_same_seed() -> None:
    made = asks(65, SEED)
    assert {ask.kind for ask in made} == set(KINDS)
    assert made == asks(65, SEED) != asks(65, SEED + 1)


def test_a_traceback_and_a_critical_line_are_trouble_and_what_a_fault_brings_with_it_is_not() -> None:
    log = """22:23:34.303 ERROR scheduler: executor 0 is given up: step 998 has not ended for 5.1 s
Traceback (most recent call last):
  File "core.py", line 1, in check
AssertionError
policies.lifecycle.InvalidTransition: request 7 was released twice
22:23:34.303 CRITICAL scheduler: Exception in callback; this process ends
BrokenPipeError: [Errno 32] Broken pipe
"""
    assert TROUBLE.findall(log) == log.splitlines()[3:]


def test_log_probabilities_may_differ_by_rounding_alone() -> None:
    right = msgspec.structs.replace(RIGHT, tokens=[["one"]], logprobs=[[-1.0]])
    assert not msgspec.structs.replace(right, logprobs=[[-1.00001]]).differs(right)
    assert "log-probabilities" in msgspec.structs.replace(right, logprobs=[[-1.1]]).differs(right)
