"""Admission is killed again and again under load: nothing settled is lost, nothing stays reserved, no stream is cut."""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest
from deployed import ROOT, House, fairlead, free_port

from engine.interface import EngineSettings
from policies.commands import Finish
from policies.event_log import read_records
from services.settings import Deployment, HttpSettings, child_environment
from services.setup import prepare
from services.usage_rows import FILE, read_usage

NUM_KILLS = 20
"""Enough to meet every moment of a request; hundreds are `fairlead bench chaos --fault kill-admission`."""
NUM_READERS = 8
START_S = 60.0
RETRY_S = 0.05
"""A client does not ask again at once."""
SETTLED_S = 20.0
LIMITS = """limits:
  - {scope: tenant, dimension: concurrency, max: 30}  # a kill that leaks some of them ends in a 429
  - {scope: key, dimension: total_tokens, rate_per_day: 100000000}
  - {scope: tenant, dimension: requests, rate_per_min: 100000}
"""


class Services:
    """The four services as a container platform would run them: each by itself, started again at once."""

    def __init__(self, folder: Path) -> None:
        policy = folder / "policy.yaml"
        shipped = (ROOT / "policies" / "fairlead.yaml").read_text()
        assert "limits:" not in shipped
        policy.write_text(shipped + LIMITS)
        self.deployment = Deployment(
            data=str(folder / "data"),
            policy=str(policy),
            record=str(folder / "record"),
            http=HttpSettings(port=free_port()),
            engine=EngineSettings(kind="paced", paced_step_s=0.01),
        ).resolved()
        self.key = prepare(self.deployment).key
        self.file = folder / "deployment.yaml"
        self.file.write_bytes(msgspec.json.encode(self.deployment))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.log = folder / "log"

    def start(self, service: str) -> None:
        self.ready(service).unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.processes[service] = subprocess.Popen(
                [sys.executable, "-m", "services.cli", "serve", service],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env=child_environment(self.file) | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
            )

    def ready(self, service: str) -> Path:
        return Path(self.deployment.run) / f"{service}.ready"

    async def wait_until_ready(self, *services: str) -> None:
        # Files of other processes can only be looked at.
        async with asyncio.timeout(START_S):
            while not all(self.ready(service).exists() for service in services):  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def wait_until_settled(self) -> None:
        async with asyncio.timeout(SETTLED_S):
            while self.rows("core_row", "charge:"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    def kill(self, service: str) -> None:
        self.processes[service].kill()
        self.processes[service].wait()

    def stop(self) -> None:
        for service in ("gateway", "admission", "scheduler", "executor"):
            if (process := self.processes.get(service)) is not None:
                process.send_signal(signal.SIGTERM)
                process.wait(30)

    def rows(self, table: str, begins: str = "") -> list[str]:
        with contextlib.closing(sqlite3.connect(f"file:{self.deployment.data}/{FILE}?mode=ro", uri=True)) as connection:
            names = connection.execute(f"SELECT name FROM {table}").fetchall()  # noqa: S608  our own names
        return [name for (name,) in names if name.startswith(begins)]


class Load:
    """Readers that always want something, and what they got."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.url = f"http://127.0.0.1:{services.deployment.http.port}/v1/completions"
        self.num_pieces = 0
        self.output_tokens = 0
        self.num_answered = 0
        self.num_refused = 0
        self.cut: list[Any] = []
        self.over = False
        self.heard = asyncio.Condition()

    async def run(self) -> None:
        headers = {"authorization": f"Bearer {self.services.key}"}
        async with aiohttp.ClientSession(headers=headers) as session, asyncio.TaskGroup() as tasks:
            for number in range(NUM_READERS):
                tasks.create_task(self._read(session, np.random.default_rng(number)))

    async def pieces(self, count: int) -> None:
        """Wait for so many more."""
        goal = self.num_pieces + count
        async with asyncio.timeout(START_S), self.heard:
            await self.heard.wait_for(lambda: self.num_pieces >= goal)

    async def _read(self, session: aiohttp.ClientSession, chance: np.random.Generator) -> None:
        while not self.over:
            body = {
                "model": "demo",
                "prompt": chance.integers(16, 500, chance.integers(5, 60)).tolist(),
                "max_tokens": int(chance.integers(10, 50)),
                "seed": int(chance.integers(2**31)),
                "stream": True,
                "stream_options": {"include_usage": True},
                "ignore_eos": True,
            }
            async with session.post(self.url, json=body) as answer:
                if answer.status == 200:
                    await self._follow(answer, body["max_tokens"])
                    continue
                self.num_refused += 1
                said = await answer.json()
            assert answer.status == 503, said
            await self.services.wait_until_ready("admission")
            await asyncio.sleep(RETRY_S)

    async def _follow(self, answer: aiohttp.ClientResponse, max_tokens: int) -> None:
        has_begun, tokens = False, 0
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            piece = json.loads(line[6:])
            if "error" in piece:
                if has_begun:
                    self.cut.append(piece)
                else:
                    self.num_refused += 1
                return
            has_begun = True
            if piece.get("usage"):
                tokens = piece["usage"]["completion_tokens"]
            async with self.heard:
                self.num_pieces += 1
                self.heard.notify_all()
        if tokens != max_tokens:
            self.cut.append((tokens, max_tokens))
        self.output_tokens += tokens
        self.num_answered += 1


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    made = Services(tmp_path)
    yield made
    made.stop()


def test_admission_is_killed_again_and_again_under_load_and_every_token_is_accounted_for(services: Services) -> None:
    load = asyncio.run(_story(services))
    services.stop()
    log = (Path(services.deployment.record) / "scheduler.log").read_bytes()
    ends = [
        command
        for record in read_records(log)
        for command in msgspec.msgpack.decode(record.commands)
        if command["command"] == Finish.__name__
    ]
    output_tokens = sum(end["output_tokens"] for end in ends)
    (used,) = read_usage(Path(services.deployment.data) / FILE, "", 2)
    answers = f"{load.num_answered} answers with {load.output_tokens} tokens, {load.num_refused} refused"
    truth = f"the scheduler ended {len(ends)} requests with {output_tokens} tokens"
    print(f"\n{NUM_KILLS} kills: {answers}; {truth}; usage has {used.counts}")
    assert load.cut == []
    assert used.counts["output_tokens"] == output_tokens >= load.output_tokens > 0
    assert used.counts["requests"] == len(ends) >= load.num_answered
    assert services.rows("core_row", "charge:") == []
    assert services.rows("core_row", "taken:") == []
    assert [name for name in services.rows("limit_level") if ":concurrency:" in name] == []


async def _story(services: Services) -> Load:
    for service in ("executor", "scheduler", "admission", "gateway"):
        services.start(service)
    await services.wait_until_ready("executor", "scheduler", "admission", "gateway")
    load, chance = Load(services), np.random.default_rng(5)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(load.run())
        for _ in range(NUM_KILLS):
            await load.pieces(int(chance.integers(1, 100)))
            services.kill("admission")
            services.start("admission")
            await services.wait_until_ready("admission")
        await load.pieces(100)
        load.over = True
    await services.wait_until_settled()
    return load


def complete(house: House) -> dict[str, Any]:
    body = json.dumps({"model": "demo", "prompt": [20] * 7, "max_tokens": 5, "ignore_eos": True}).encode()
    headers = {"authorization": f"Bearer {house.key}", "content-type": "application/json"}
    request = urllib.request.Request(f"{house.url}/v1/completions", body, headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        document: dict[str, Any] = json.load(answer)
    return document


def test_fairlead_up_starts_a_killed_admission_again_and_usage_goes_on(
    house: Callable[..., House], tmp_path: Path
) -> None:
    deployment = tmp_path / "deployment.yaml"
    deployment.write_text("engine: {kind: paced, paced_step_s: 0.001}\n")
    up = house("--deployment", str(deployment))
    complete(up)
    killed = up.pid("admission")
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    up.wait_until("/v1/models", lambda _: up.pid("admission") not in (None, killed) and up.pid("gateway") is not None)
    complete(up)
    assert "admission ended" in up.text
    assert "starting it again" in up.text
    up.stop()
    (used,) = json.loads(fairlead("usage", "--data-dir", str(up.data), "--days", "2", "--json").stdout)["usage"]
    assert (used["requests"], used["prompt_tokens"], used["output_tokens"]) == (2, 14, 10)
