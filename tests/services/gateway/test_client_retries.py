"""The official clients against real limits: all services in one process, with an engine that computes nothing."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from engine.interface import EngineError, EngineSettings
from engine.paced import PacedEngine
from policies.document.tenants import digest
from services.admission import policy_files
from services.admission.service import AdmissionService
from services.executor.service import Executor
from services.gateway.service import GatewayService
from services.runtime import ReadyFile
from services.scheduler.service import SchedulerService
from services.settings import Deployment, HttpSettings

KEY, SMALL_KEY = "fl-test-key", "fl-test-small"
MESSAGES: Any = [{"role": "user", "content": "Hello"}]
TENANTS = f"""
version: 1
tenants:
  - name: acme
    tier: paid
    keys: [{{id: one, sha256: {digest(KEY)}}}]
  - name: small
    classes: [bronze]
    keys: [{{id: two, sha256: {digest(SMALL_KEY)}}}]
"""
POLICY = """
version: 1
name: limited
classes: [{name: all, ttft_s: 1, tbt_s: 1}]
limits: LIMITS
batching: {stages: [{decode: {}}, {prefill: {from: waiting}}]}
"""
TWO_CLASSES = """
version: 1
name: two
classes: [{name: gold, ttft_s: 1, tbt_s: 1}, {name: bronze, ttft_s: 9, tbt_s: 9}]
classify: [{when: {service_tier: priority}, class: gold}, {class: bronze}]
batching: {stages: [{decode: {}}, {prefill: {from: waiting}}]}
"""
STEP_S = 0.003


class Ends(PacedEngine):
    """A paced engine that can be told to end its thread."""

    over = False

    def forget(self, sequences: list[int]) -> None:
        if self.over:
            raise EngineError("the test is over")
        super().forget(sequences)


class House:
    """All four services, and what clients saw of each attempt."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.policy = folder / "policy.yaml"
        self.policy.write_text(POLICY.replace("LIMITS", "[]"))
        (folder / "tenants.yaml").write_text(TENANTS)
        (folder / "demo").symlink_to(checkpoint)
        self.deployment = Deployment(
            model=str(folder / "demo"),
            data=str(folder),
            run=str(folder / "run"),
            policy=str(self.policy),
            check=True,
            http=HttpSettings(port=0, drain_s=0.2),
        ).resolved()
        Path(self.deployment.streams.secret_file).write_bytes(b"s" * 32)
        self.scheduler = SchedulerService(self.deployment)
        self.admission = AdmissionService(self.deployment)
        self.gateway = GatewayService(self.deployment)
        self.engine = Ends(EngineSettings(kind="paced", paced_step_s=STEP_S, kv_pool_tokens=4096), 4096, 512)
        self.thread = threading.Thread(target=self._execute, daemon=True)
        self.answers: list[tuple[float, httpx2.Response]] = []
        self.sent: list[tuple[float, httpx2.Request]] = []

    async def start(self) -> None:
        await self.scheduler.start()
        await self.admission.start()
        await self.gateway.start()
        self.thread.start()
        await until(lambda: not self.gateway.not_ready())

    async def stop(self) -> None:
        self.engine.over = True
        await self.gateway.stop()
        await self.admission.stop()
        await self.scheduler.stop()
        await asyncio.to_thread(self.thread.join, 10)

    async def limit(self, limits: str) -> None:
        await self.save(POLICY.replace("LIMITS", limits))

    async def save(self, policy: str) -> None:
        """Save a policy, and wait until it is in force everywhere."""
        revisions = self.gateway.api._backend.revisions
        before = revisions.label
        self.policy.write_text(policy)
        await until(lambda: revisions.label != before)

    def transport(self) -> httpx2.AsyncClient:
        """HTTP as the clients do it, with a note of when each attempt was made and answered."""

        async def sending(request: httpx2.Request) -> None:
            self.sent.append((time.monotonic(), request))

        async def answered(response: httpx2.Response) -> None:
            self.answers.append((time.monotonic(), response))

        return httpx2.AsyncClient(event_hooks={"request": [sending], "response": [answered]})

    def _execute(self) -> None:
        with suppress(EngineError):  # it was told to end
            Executor(self.engine, self.deployment, ReadyFile(Path(self.deployment.run), "executor")).run()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  services signal their state to nobody
            await asyncio.sleep(0.002)


@pytest.fixture
async def house(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(policy_files, "POLL_S", 0.005)
    made = House(tmp_path, checkpoint)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def clients(house: House) -> AsyncIterator[tuple[openai.AsyncOpenAI, anthropic.AsyncAnthropic]]:
    url = f"http://127.0.0.1:{house.gateway.port}"
    async with (
        openai.AsyncOpenAI(api_key=KEY, base_url=f"{url}/v1", max_retries=1, http_client=house.transport()) as one,
        anthropic.AsyncAnthropic(api_key=KEY, base_url=url, max_retries=1, http_client=house.transport()) as other,
    ):
        yield one, other


async def read(stream: Any) -> None:
    async for _ in stream:
        pass


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "limits",
    [
        "[{scope: key, dimension: requests, rate_per_min: 120, burst: 1}]",
        "[{scope: tenant, dimension: output_tokens, rate_per_min: 2400, burst: 20}]",
    ],
)
async def test_a_client_waits_what_it_was_told_and_then_succeeds(
    house: House, clients: Any, dialect: str, streamed: bool, limits: str
) -> None:
    await house.limit(limits)
    openai_client, anthropic_client = clients
    create = openai_client.chat.completions.create if dialect == "openai" else anthropic_client.messages.create

    async def ask() -> None:
        answer = await create(model="demo", messages=MESSAGES, max_tokens=20, stream=streamed)
        if streamed:
            await read(answer)

    await asyncio.gather(ask(), ask())
    [(refused_s, refusal)] = [each for each in house.answers if each[1].status_code == 429]
    [again_s] = [sent_s for sent_s, request in house.sent if request.headers["x-stainless-retry-count"] == "1"]
    told_ms = int(refusal.headers["retry-after-ms"])
    assert 0 < told_ms <= 500
    assert refusal.headers["retry-after"] == "1"
    assert again_s - refused_s >= told_ms / 1000
    assert sorted(answer.status_code for _, answer in house.answers) == [200, 200, 429]


async def test_a_started_stream_is_not_cut_when_nothing_is_left_of_a_budget_nor_when_it_is_lowered(
    house: House, clients: Any
) -> None:
    await house.limit("[{scope: tenant, dimension: output_tokens, rate_per_min: 300, burst: 300}]")
    client = clients[0].with_options(max_retries=0)
    options: Any = {"model": "demo", "messages": MESSAGES, "max_tokens": 300}
    stream = await client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    await anext(stream)
    with pytest.raises(openai.RateLimitError, match="output"):
        await client.chat.completions.create(**options)
    await house.limit("[{scope: tenant, dimension: output_tokens, rate_per_min: 1, burst: 1}]")
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**options)
    assert caught.value.code == "request_exceeds_limit"
    assert house.gateway.api._backend.running
    chunks = [chunk async for chunk in stream]
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 300


async def test_what_is_left_is_exact_and_wrong_requests_count(house: House, clients: Any) -> None:
    await house.limit(
        "[{scope: key, dimension: requests, rate_per_day: 1000}, "
        "{scope: tenant, dimension: total_tokens, rate_per_day: 100000}]"
    )
    client = clients[0].chat.completions.with_raw_response
    first = await client.create(model="demo", messages=MESSAGES, max_tokens=20)
    used = first.http_response.json()["usage"]["total_tokens"]
    assert first.headers["x-ratelimit-limit-requests"] == "1000"
    assert first.headers["x-ratelimit-remaining-requests"] == "999"
    assert first.headers["x-ratelimit-remaining-tokens"] == str(100_000 - used)
    with pytest.raises(openai.NotFoundError) as caught:
        await client.create(model="wrong", messages=MESSAGES, max_tokens=20)
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "998"
    second = await client.create(model="demo", messages=MESSAGES, max_tokens=20)
    assert second.headers["x-ratelimit-remaining-requests"] == "997"
    assert second.headers["ratelimit-policy"] == '"requests";q=1000;w=86400, "tokens";q=100000;w=86400'


async def test_clients_give_up_at_once_where_the_limit_of_a_day_is_used_up(house: House, clients: Any) -> None:
    await house.limit("[{scope: tenant, dimension: requests, rate_per_day: 24, burst: 1}]")
    one, other = clients
    options: Any = {"model": "demo", "messages": MESSAGES, "max_tokens": 2}
    await one.chat.completions.create(**options)
    for create in (one.chat.completions.create, other.messages.create):
        with pytest.raises((openai.RateLimitError, anthropic.RateLimitError), match="24 requests a day"):
            await asyncio.wait_for(create(**options), 30)
        _, refusal = house.answers[-1]
        assert 3500 < int(refusal.headers["retry-after"]) <= 3600
        assert refusal.headers["x-should-retry"] == "false"
    assert len(house.sent) == 3


@pytest.mark.parametrize(
    ("key", "asked", "given"),
    [(KEY, "priority", "gold"), (KEY, "auto", "bronze"), (SMALL_KEY, "priority", "bronze")],
)
async def test_a_service_tier_chooses_a_class_that_its_tenant_may_use(
    house: House, clients: Any, key: str, asked: Any, given: str
) -> None:
    await house.save(TWO_CLASSES)
    one, other = (client.with_options(api_key=key) for client in clients)
    options: Any = {"model": "demo", "messages": MESSAGES, "max_tokens": 2, "service_tier": asked}
    assert (await one.chat.completions.create(**options)).service_tier == given
    assert (await other.messages.create(**options)).usage.service_tier == given
    assert {answer.headers["x-fairlead-class"] for _, answer in house.answers} == {given}
