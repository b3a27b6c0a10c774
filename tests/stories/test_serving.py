"""Many tenants at once, through the whole house and the official client."""

import asyncio
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import openai
import pytest
from deployed import House

NUM_STREAMS = 64
NUM_SWAPS = 20
TIERS = {"acme": "paid", "globex": "free", "initech": "free"}
POLICIES = Path(__file__).resolve().parents[2] / "policies"


class Story(NamedTuple):
    """What one reader got."""

    pieces: list[str]
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Request(NamedTuple):
    prompt: str
    max_tokens: int
    temperature: float
    seed: int


REQUESTS = [
    Request(
        prompt=" ".join(f"word{index * 7 % 13}" for _ in range(1 + index * 5 % 90)),
        max_tokens=(4, 16, 17, 33)[index % 4],
        temperature=(0.0, 0.8)[index % 2],
        seed=index,
    )
    for index in range(NUM_STREAMS)
]


async def read(client: openai.AsyncOpenAI, request: Request) -> Story:
    pieces: list[str] = []
    finish_reason, usage = None, None
    stream = await client.completions.create(
        model="demo",
        prompt=request.prompt,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        seed=request.seed,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    async for chunk in stream:
        if chunk.usage is not None:
            assert usage is None, "usage came twice"
            usage = chunk.usage
        for choice in chunk.choices:
            pieces.append(choice.text)
            finish_reason = choice.finish_reason or finish_reason
    assert usage is not None
    return Story(pieces, finish_reason, usage.prompt_tokens, usage.completion_tokens)


def clients(house: House) -> list[openai.AsyncOpenAI]:
    keys = [house.add_key(tenant, tier) for tenant, tier in TIERS.items()]
    return [openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=key, max_retries=0, timeout=120) for key in keys]


async def few_at_once(reader: openai.AsyncOpenAI) -> list[Story]:
    """The reference: other batch mates, other steps."""
    gate = asyncio.Semaphore(3)

    async def read_when_open(request: Request) -> Story:
        async with gate:
            return await read(reader, request)

    return list(await asyncio.gather(*map(read_when_open, REQUESTS)))


async def all_at_once(readers: list[openai.AsyncOpenAI]) -> list[Story]:
    return list(await asyncio.gather(*(read(c, r) for c, r in zip(cycle(readers), REQUESTS, strict=False))))


def assert_exact(stories: list[Story], reference: list[Story]) -> None:
    """Every reader got the tokens its request gets in any company: none lost, none repeated, none of somebody else."""
    for request, story, expected in zip(REQUESTS, stories, reference, strict=True):
        assert story.completion_tokens == request.max_tokens
        assert story.finish_reason == "length"
        assert story.prompt_tokens == expected.prompt_tokens
        assert story.text == expected.text


@pytest.mark.slow
async def test_64_streams_of_3_tenants_get_every_token_once_while_the_policy_changes_20_times(
    house: Callable[..., House],
) -> None:
    running = house("--check")
    readers = clients(running)
    reference = await few_at_once(readers[0])

    assert_exact(await all_at_once(readers), reference)

    revisions = {running.get("/v1/fairlead/policy")["now"]["revision"]}
    swapping = asyncio.create_task(swap_policies(running, revisions))
    while not swapping.done():
        assert_exact(await all_at_once(readers), reference)
    await swapping
    assert len(revisions) == NUM_SWAPS + 1
    history = running.get("/v1/fairlead/policy")["history"]
    assert [entry["revision"] for entry in history] == sorted(revisions)
    for reader in readers:
        await reader.close()


async def swap_policies(running: House, revisions: set[object]) -> None:
    """Save another policy file, wait until its revision is in force, 20 times."""
    names = cycle(["sarathi", "vllm", "slai", "fcfs", "fairlead"])
    for swap in range(NUM_SWAPS):
        name = next(names)
        running.policy.write_text((POLICIES / f"{name}.yaml").read_text() + f"# save {swap}\n")
        now = await asyncio.to_thread(
            running.wait_until, "/v1/fairlead/policy", lambda answer: answer["now"]["revision"] not in revisions
        )
        revisions.add(now["now"]["revision"])


@pytest.mark.slow
async def test_an_invalid_save_keeps_the_old_policy_running_and_says_why(house: Callable[..., House]) -> None:
    running = house()
    before = running.get("/v1/fairlead/policy")
    good = running.policy.read_text()
    running.policy.write_text(good.replace("token_budget", "token_budgett"))
    await asyncio.to_thread(running.wait_until, "/readyz", lambda answer: answer["last_save"] is not None)
    now = running.get("/readyz", (running.data / "admin.key").read_text().strip())
    assert now["last_save"]["outcome"] == "rejected"
    assert 'did you mean "token_budget"' in now["last_save"]["error"]
    assert running.get("/v1/fairlead/policy")["now"] == before["now"]
    (reader, *_) = clients(running)
    assert (await read(reader, REQUESTS[0])).completion_tokens == REQUESTS[0].max_tokens
    await reader.close()
