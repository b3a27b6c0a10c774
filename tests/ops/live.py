"""The four services under a little of everything, read by a real Prometheus with the rules that are shipped."""

import asyncio
import contextlib
import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from deployed import free_port

from engine.interface import EngineSettings
from ops.bench import deployed
from policies.document.tenants import digest
from services.settings import Deployment, HttpSettings, MetricsSettings, TelemetrySettings, TrafficSettings
from tests.ops.boards import OPS, RULES

SERVICES = ("gateway", "admission", "scheduler", "executor")
TIERS = {"acme": "paid", "globex": "free", "capped": "free"}
LIMIT_S = 30.0
POLICY = """
version: 1
name: boards
classes:
  - {name: paid, ttft_s: 0.0001, tbt_s: 0.0001}  # promises that cannot be kept: misses have somebody to blame
  - {name: free, ttft_s: 60, tbt_s: 60}
classify:
  - {when: {tier: paid}, class: paid}
  - {class: free}
limits:
  - {scope: tenant, dimension: requests, rate_per_min: 2, when: {tenant: capped}}
fairness: {kind: vtc, cost: {kind: weighted_tokens, prompt: 1, output: 2}, window_tokens: 2000, max_requests: 6}
queue: {per_tenant_max: 6}
batching:
  token_budget: 64
  stages: [{decode: {when: any, order: [arrival]}}, {prefill: {from: [started, waiting], order: [arrival]}}]
kv: {admit: future, estimate: lower, reserve: 0.0, watermark: 0.0}
preemption: {victim: [newest, self]}
"""
KV_POOL_TOKENS = 512
"""For about three of the six requests in flight: some lose their blocks."""


class House:
    """Running services and what reads their metrics."""

    def __init__(self, port: int, policy: Path, prometheus: str) -> None:
        self.policy = policy
        self.began_s = time.time()
        self._port = port
        self._prometheus = prometheus

    def ask(self, path: str, **parameters: str) -> Any:
        """What Prometheus answers; an error is its own words."""
        url = f"{self._prometheus}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def series(self, expression: str) -> list[dict[str, Any]]:
        """Its series since the beginning, a value a second."""
        now_s = time.time()
        found = self.ask("query_range", query=expression, start=f"{self.began_s}", end=f"{now_s}", step="1s")
        return list(found["result"])

    def wait_until(self, expression: str) -> None:
        """Until this has a value."""
        deadline = time.monotonic() + LIMIT_S
        while not self.ask("query", query=expression)["result"]:
            assert time.monotonic() < deadline, f"{expression} has no value"
            time.sleep(0.1)

    def load(self) -> list[int]:
        """Requests of every tenant; the status of each."""
        return asyncio.run(self._load())

    async def _load(self) -> list[int]:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{self._port}") as session:
            many = [self._one(session, tenant, number) for number in range(14) for tenant in ("acme", "globex")]
            return await asyncio.gather(*many, *(self._one(session, "capped", number) for number in range(4)))

    async def _one(self, session: aiohttp.ClientSession, tenant: str, number: int) -> int:
        # Prompts of a tenant begin alike, so that later ones find something in the prefix cache.
        prompt = [20 + number % 3] * 48 + [30 + number] * 16
        body = {"model": "demo", "prompt": prompt, "max_tokens": 60 + number, "stream": True, "seed": number}
        headers = {"authorization": f"Bearer {secret(tenant)}"}
        async with session.post("/v1/completions", json=body, headers=headers) as answer:
            await answer.read()
            return answer.status


def secret(tenant: str) -> str:
    return f"fl-test-{tenant}"


@contextlib.contextmanager
def house(folder: Path) -> Iterator[House]:
    """Services on a paced engine, and Prometheus."""
    policy = folder / "policy.yaml"
    policy.write_text(POLICY)
    data = folder / "data"
    data.mkdir()
    tenants = [
        {"name": name, "tier": tier, "keys": [{"id": f"key_{name}", "sha256": digest(secret(name))}]}
        for name, tier in TIERS.items()
    ]
    (data / "tenants.yaml").write_text(json.dumps({"version": 1, "tenants": tenants}))
    ports = {service: free_port() for service in SERVICES}
    deployment = Deployment(
        data=str(data),
        policy=str(policy),
        http=HttpSettings(port=free_port()),
        traffic=TrafficSettings(keep_s=0),
        telemetry=TelemetrySettings(metrics=MetricsSettings(**ports)),
        engine=EngineSettings(kind="paced", paced_step_s=0.01, kv_pool_tokens=KV_POOL_TOKENS),
    )
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(prometheus(folder, ports))
        deployed.start(deployment, folder, stack)
        yield House(deployment.http.port, policy, url)


@contextlib.contextmanager
def prometheus(folder: Path, ports: dict[str, int]) -> Iterator[str]:
    """The configuration that is shipped, but for where services are, how often it looks, and what else there is."""
    config = yaml.safe_load((OPS / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES)]
    config["scrape_configs"] = [
        {"job_name": job["job_name"], "static_configs": [{"targets": [f"127.0.0.1:{ports[job['job_name']]}"]}]}
        for job in config["scrape_configs"]
        if job["job_name"] in ports
    ]
    file, port = folder / "prometheus.yml", free_port()
    file.write_text(yaml.safe_dump(config))
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--enable-feature=exemplar-storage",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)
