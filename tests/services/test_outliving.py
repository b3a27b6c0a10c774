"""The scheduler or admission is lost under running requests, and no reader can tell by what they get."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from random_checkpoint import write_random_checkpoint
from whole_house import WholeHouse

from policies.admission.core import AdmissionCore
from policies.event_log import read_records, verify
from policies.scheduling.core import SchedulerCore

TOKENS = 40
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT = {"prompt": "def first(items):", "ignore_eos": True}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60},
        "sizes": {"type": "array", "items": {"type": "integer"}},
    },
    "required": ["name", "sizes"],
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "greedy": (COMPLETIONS, {**PROMPT, "temperature": 0}),
    "seeded": (COMPLETIONS, {**PROMPT, "seed": 7, "top_p": 0.9, "stream": True}),
    "penalties": (COMPLETIONS, {**PROMPT, "seed": 8, "frequency_penalty": 0.7, "presence_penalty": 0.5}),
    "choices": (COMPLETIONS, {**PROMPT, "seed": 9, "n": 3, "stop": ["e"]}),
    "log-probabilities": (COMPLETIONS, {**PROMPT, "seed": 10, "logprobs": 3}),
    "grammar": (
        CHAT,
        {
            "messages": [{"role": "user", "content": "Name it"}],
            "seed": 11,
            "response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA, "strict": True}},
        },
    ),
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("model") / "demo")


@pytest.fixture
async def house(tmp_path: Path, checkpoint: Path):
    made = await WholeHouse(tmp_path, checkpoint).start()
    yield made
    await made.stop()


class Asked:
    """What a house was asked, and what is to be paid for it."""

    def __init__(self, house: WholeHouse) -> None:
        self.house = house
        self.due: Counter[str] = Counter()

    async def one(self, kind: str) -> Any:
        path, body = KINDS[kind]
        options = {"stream_options": {"include_usage": True}} if body.get("stream") else {}
        status, answer = await self.house.post(path, max_tokens=TOKENS, **body, **options)
        assert status == 200, answer
        usage = answer[-1]["usage"] if isinstance(answer, list) else answer["usage"]
        counts = {"prompt_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]}
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        self.due.update({"requests": 1, "cached_tokens": cached, **counts})
        return said(answer), counts

    async def all(self) -> dict[str, Any]:
        return {kind: await self.one(kind) for kind in KINDS}

    async def begin(self) -> dict[str, "asyncio.Task[Any]"]:
        """All at once: nothing is computed before all are with the scheduler."""
        self.house.gate.stop_after(0)
        running = {kind: asyncio.ensure_future(self.one(kind)) for kind in KINDS}
        await self.house.until(lambda: len(self.house.scheduler._core.requests) == len(KINDS))
        return running

    async def paid(self) -> None:
        """Everything is over, and was charged once."""
        await self.house.quiet()
        await self.house.stop()
        self.house.stop = no_stop  # type: ignore[method-assign]
        counts = self.house.usage()
        assert {name: counts.get(name, 0) for name in self.due} == self.due
        replay(Path(self.house.deployment.record))


def replay(folder: Path) -> None:
    """The logs of all that were lost, and of who came after them."""
    for log in folder.glob("*.log"):
        core = AdmissionCore() if log.name.startswith("admission") else SchedulerCore()
        assert verify(core, list(read_records(log.read_bytes()))) is None, log.name


def said(answer: Any) -> Any:
    """What an answer says, whatever its id is and however it was cut into events."""
    if not isinstance(answer, list):
        return answer["choices"]
    choices = [choice for event in answer for choice in event["choices"]]
    return "".join(choice["text"] for choice in choices), choices[-1]["finish_reason"]


async def no_stop() -> None:
    """The test has stopped the house itself."""


async def test_a_scheduler_that_is_replaced_changes_no_answer_and_no_charge(house: WholeHouse) -> None:
    asked = Asked(house)
    expected, running = await asked.all(), await asked.begin()
    for num_steps in (12, 15):
        await house.computed(num_steps)
        await house.replace_scheduler()
    house.gate.let_on()
    for kind, task in running.items():
        assert await task == expected[kind], kind
    assert house.gateway._backend.num_resumed >= len(KINDS)
    await asked.paid()


async def test_an_executor_that_is_lost_changes_no_answer_and_no_charge(house: WholeHouse) -> None:
    asked = Asked(house)
    expected, running = await asked.all(), await asked.begin()
    for num_steps in (12, 15):
        await house.computed(num_steps)
        house.lose_executor()
    house.gate.let_on()
    for kind, task in running.items():
        assert await task == expected[kind], kind
    assert house.gateway._backend.num_resumed == 0
    await asked.paid()


async def test_admission_that_is_replaced_changes_no_answer_and_no_charge(house: WholeHouse) -> None:
    asked = Asked(house)
    expected, running = await asked.all(), await asked.begin()
    for num_steps in (1, 20):
        await house.computed(num_steps)
        await house.replace_admission()
    house.gate.let_on()
    for kind, task in running.items():
        assert await task == expected[kind], kind
    await asked.paid()


async def test_an_embedding_is_made_anew(house: WholeHouse) -> None:
    body = {"input": "def first(items):"}
    _, expected = await house.post("/v1/embeddings", **body)
    house.gate.stop_after(0)
    asked = asyncio.ensure_future(house.post("/v1/embeddings", **body))
    await house.until(lambda: house.gate.is_waiting)
    await house.replace_scheduler()
    house.gate.let_on()
    status, document = await asked
    assert status == 200
    assert document["data"] == expected["data"]


async def test_both_may_be_lost_at_once(house: WholeHouse) -> None:
    asked = Asked(house)
    expected, running = await asked.all(), await asked.begin()
    await house.computed(15)
    await asyncio.gather(house.replace_scheduler(), house.replace_admission())
    house.gate.let_on()
    for kind, task in running.items():
        assert await task == expected[kind], kind
    await asked.paid()


async def test_what_ends_while_admission_is_away_is_charged_though_the_scheduler_is_lost_before_it_is_back(
    house: WholeHouse,
) -> None:
    asked = Asked(house)
    expected, running = await asked.all(), await asked.begin()
    await house.computed(12)
    await house.admission.stop()
    house.gate.let_on()
    for kind, task in running.items():
        assert await task == expected[kind], kind
    await house.until(lambda: not house.scheduler._sequences.by_id)
    await house.lose_scheduler()
    await house.replace_admission()
    await house.replace_scheduler()
    await asked.paid()


async def test_a_request_that_comes_while_nobody_is_there_waits_for_them(house: WholeHouse) -> None:
    asked = Asked(house)
    expected = await asked.one("greedy")
    await house.quiet()  # its end is settled: this is about the one that comes
    await house.admission.stop()
    await house.scheduler.stop()
    await house.until(lambda: not house.gateway._backend._neighbours.has("admission"))
    waiting = asyncio.ensure_future(asked.one("greedy"))
    await house.until(lambda: house.gateway._backend.running)
    await house.replace_admission()
    await house.replace_scheduler()
    assert await waiting == expected
    await asked.paid()


async def test_a_client_that_leaves_while_nobody_is_there_leaves_nothing_behind(house: WholeHouse) -> None:
    asked = Asked(house)
    running = await asked.begin()
    await house.computed(15)
    await house.lose_scheduler()
    house.gate.let_on()
    for task in running.values():
        task.cancel()
    await asyncio.wait(running.values())
    await house.until(lambda: not house.gateway._backend.running)
    await house.replace_scheduler()
    await house.quiet()
    assert await asked.one("greedy")
    await house.quiet()


@pytest.mark.parametrize("lost", ["scheduler", "admission"])
async def test_nobody_is_waited_for_longer_than_the_limit(tmp_path: Path, checkpoint: Path, lost: str) -> None:
    house = await WholeHouse(tmp_path, checkpoint, resume_s=0.2, lease_s=0.5).start()
    path, body = KINDS["greedy"]
    if lost == "scheduler":
        running = asyncio.ensure_future(house.post(path, max_tokens=2000, **body))
        await house.computed(4)
        await house.lose_scheduler()
    else:
        await house.admission.stop()
        await house.until(lambda: not house.gateway._backend._neighbours.has("admission"))
        running = asyncio.ensure_future(house.post(path, max_tokens=2000, **body))
    status, answer = await running
    assert (status, answer["error"]["code"]) == {
        "scheduler": (502, "scheduler_lost"),
        "admission": (503, "admission_lost"),
    }[lost]
    await house.until(lambda: not house.admission._core.ledger.in_flight)
    await house.stop()
