"""200 tasks race for one bucket through a whole admission service: never over the limit by one token."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from engine.interface import Sampling
from policies.admission.core import AdmissionCore
from policies.event_log import read_records, verify
from services.admission.service import AdmissionService
from services.settings import Deployment
from services.transport import Identity, Link, Stream
from services.wire import AnyMessage, Cancel, Queued, Refused, Submit

SECRET = b"s" * 32
FCFS = (Path(__file__).resolve().parents[3] / "policies" / "fcfs.yaml").read_text()
BURST = 10_000
LIMIT = {"scope": "tenant", "dimension": "total_tokens", "rate_per_day": 1, "burst": BURST}
"""A token comes back in a day: whatever is let in within this test was there from the start."""
ANSWER_S = 10.0
"""Only reached when something is broken."""


class Gateway:
    """Many tasks of one gateway, each waiting for the answer to its own request."""

    def __init__(self, number: int, address: str) -> None:
        self.number = number
        self.is_open = asyncio.Event()
        self.answers: dict[int, asyncio.Future[Any]] = {}
        self.link = Link(address, Identity("gateway", str(number)), SECRET, self)
        self.link.start()

    def opened(self, stream: Stream) -> None:
        self.stream = stream
        self.is_open.set()

    def received(self, stream: Stream, message: AnyMessage) -> None:
        if isinstance(message, Queued | Refused) and not self.answers[message.request].done():
            self.answers[message.request].set_result(message)

    def closed(self, stream: Stream, reason: str) -> None: ...

    async def ask(self, number: int, tokens: int) -> Queued | Refused:
        request = (self.number << 32) + number
        answer = self.answers[request] = asyncio.get_running_loop().create_future()
        submit = Submit(request, "acme", "free", np.zeros(tokens - 1, np.int32).tobytes(), 1, [Sampling(seed=1)])
        self.stream.send(submit)
        async with asyncio.timeout(ANSWER_S):
            return await answer


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.safe_dump(yaml.safe_load(FCFS) | {"limits": [LIMIT]}))
    made = Deployment(data=str(tmp_path), policy=str(policy), record=str(tmp_path / "record"), check=True).resolved()
    Path(made.streams.secret_file).write_bytes(SECRET)
    return made


def log_of(deployment: Deployment) -> bytes:
    return (Path(deployment.record) / "admission.log").read_bytes()


@pytest.fixture
async def gateways(deployment: Deployment):
    service = AdmissionService(deployment)
    await service.start()
    gateways = [Gateway(number, deployment.streams.admission) for number in (3, 9)]
    for gateway in gateways:
        await gateway.is_open.wait()
    yield gateways
    for gateway in gateways:
        await gateway.link.close()
    await service.stop()
    # The store's answers are in the log: a replay of it needs none.
    assert verify(AdmissionCore(), read_records(log_of(deployment))) is None


async def test_200_tasks_racing_for_one_bucket_never_get_one_token_too_many(gateways: list[Gateway]) -> None:
    draw = np.random.default_rng(5)
    amounts = draw.integers(2, 200, 200).tolist()
    answers = await asyncio.gather(*(gateways[number % 2].ask(number, amount) for number, amount in enumerate(amounts)))
    let_in = [amount for amount, answer in zip(amounts, answers, strict=True) if isinstance(answer, Queued)]
    left = min(answer.limits[0].remaining for answer in answers)
    assert sum(amounts) > 1.5 * BURST
    assert sum(let_in) + left == BURST, "what was let in and what is left are not what there was"
    for amount, answer in zip(amounts, answers, strict=True):
        if isinstance(answer, Refused):
            assert (answer.code, answer.dimension) == ("rate_limit_exceeded", "total_tokens")
            assert amount > answer.limits[0].remaining, "refused although it fitted"


async def test_what_the_tasks_that_gave_up_had_taken_is_there_for_the_next(gateways: list[Gateway]) -> None:
    gateway = gateways[0]
    first = await asyncio.gather(*(gateway.ask(number, 100) for number in range(200)))
    let_in = [number for number, answer in enumerate(first) if isinstance(answer, Queued)]
    assert len(let_in) == 100
    for number in let_in:
        gateway.stream.send(Cancel((3 << 32) + number))
    second = await asyncio.gather(*(gateway.ask(1000 + number, 50) for number in range(400)))
    assert sum(isinstance(answer, Queued) for answer in second) == 200
