"""Two tenants on the four services and the CPU engine: does each get its share, and does a flood stay its own problem?

Shares: one tenant offers four times what the other does, both more than there is. For a minute in which both are
backlogged, each one's service (prompt tokens + 2 x output tokens) as admission accounts for it, and the tokens per
second of both together, against the same load under `kind: fcfs`.

Isolation: a tenant that asks for little, alone and beside one that keeps many requests waiting. Its median time to the
first token, by the client's clock, under both kinds.

The policy is `fairlead.yaml` with another `fairness` section, which the notes say, and without `admission`. Shares need
nothing of it. Isolation needs a short in-flight window: what is in flight when a request comes is what it waits for.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from engine.interface import EngineSettings
from ops.bench.deployed import start
from ops.bench.harness import Row, progress
from ops.bench.readers import Reader
from ops.bench.shipped import PATIENT
from policies.document.tenants import digest
from services.asking import ask
from services.settings import Deployment, HttpSettings

SHARED = "{kind: %s, window_tokens: {pools: 3}}"
"""As the policy ships."""
SHORT = "{kind: %s, window_tokens: {pools: 3}, max_requests: 3}"
TENANTS = ("steady", "flood")
MANY_TIMES = 4
PROMPT_TOKENS, OUTPUT_TOKENS = (32, 96), (16, 48)
"""Of the run about shares, drawn evenly."""
WARM_S, SHARES_S = 10.0, 60.0
CAPACITY_S, CAPACITY_STREAMS = 6.0, 64
ALONE_PROMPT_TOKENS, ALONE_OUTPUT_TOKENS = 960, 16
ALONE_EVERY_S = 1.5
FLOOD_PROMPT_TOKENS, FLOOD_OUTPUT_TOKENS = 32, 8
FLOOD_STREAMS = 200
ISOLATION_THREADS = 1
"""Of the engine: the clients and the other services need a core of their own, or a flood of connections slows steps."""
ISOLATION_S = 30.0
FLOOD_AHEAD_S = 4.0
FIRST_TOKEN_ID, LAST_TOKEN_ID = 16, 3000
FIRST = b"data: {"


Size = Callable[[random.Random], tuple[int, int]]
"""(prompt tokens, output tokens)."""


class House(NamedTuple):
    """Running services."""

    port: int
    deployment: Deployment


class Timed(Reader):
    """Keeps when the first token came."""

    def __init__(self, asked: bytes) -> None:
        super().__init__(asked)
        self._loop = asyncio.get_running_loop()
        self._asked_at_s = self._loop.time()
        self.ttft_s: float | None = None

    def data_received(self, data: bytes) -> None:
        """Text, or a refusal."""
        if self.ttft_s is None and FIRST in data:
            self.ttft_s = self._loop.time() - self._asked_at_s
        super().data_received(data)

    def close(self) -> None:
        """Nobody reads on."""
        self._transport.abort()


class Load:
    """What one tenant asks for, drawn from `seed`, and how many of its requests are over.

    Loads of different seeds have different prompts: the prefix cache does not know those of another.
    """

    def __init__(self, tenant: str, size: Size, seed: int) -> None:
        self.tenant = tenant
        self.draw = random.Random(seed)
        self.num = 0
        self._size = size
        self._changed = asyncio.Event()

    async def ask(self, house: House) -> Timed:
        """One request under way."""
        asked = _request(self.tenant, *self._size(self.draw), self.draw)
        _, reader = await asyncio.get_running_loop().create_connection(lambda: Timed(asked), "127.0.0.1", house.port)
        return reader

    def over(self) -> None:
        """One more."""
        self.num += 1
        self._changed.set()

    async def reach(self, num: int) -> None:
        """Wait until there are so many."""
        while self.num < num:
            self._changed.clear()
            await self._changed.wait()


def run(arguments: argparse.Namespace) -> list[Row]:
    """Both runs; figures are of one run each."""
    del arguments
    rates: list[float] = []
    shares: dict[str, Shares] = {}
    for number, kind in enumerate(("vtc", "fcfs")):
        with services(SHARED % kind, EngineSettings()) as house:
            if not rates:
                rates.append(uvloop.run(_capacity(house)))
            shares[kind] = uvloop.run(_shares(house, rates[0]))
        progress(number + 1, 4)
    waits: dict[str, list[float]] = {}
    one_thread = EngineSettings(threads=ISOLATION_THREADS)
    with services(SHORT % "vtc", one_thread) as house:
        waits["alone"] = uvloop.run(_isolation(house, flooded=False))
        waits["vtc"] = uvloop.run(_isolation(house, flooded=True))
    progress(3, 4)
    with services(SHORT % "fcfs", one_thread) as house:
        waits["fcfs"] = uvloop.run(_isolation(house, flooded=True))
    progress(4, 4)
    return [*_share_rows(shares, rates[0]), *_isolation_rows(waits)]


class Shares(NamedTuple):
    """What two backlogged tenants got in a minute."""

    steady: float
    flood: float
    tokens_per_s: float
    gap_ratio: float


def _share_rows(shares: dict[str, Shares], rate: float) -> list[Row]:
    vtc, fcfs = shares["vtc"], shares["fcfs"]
    off = vtc.flood / vtc.steady - 1
    offered = f"offered: {rate:.1f} and {MANY_TIMES * rate:.1f} requests a second, of which {rate:.1f} can be served"
    under = f"under fcfs {fcfs.flood / fcfs.steady:.2f} times; largest gap under vtc {vtc.gap_ratio:.4f} of its bound"
    policy = f"fairness: {SHARED % 'vtc'}"
    return [
        _row(
            "service of the heavy tenant over the light one's",
            "cost",
            (vtc.flood, vtc.steady),
            1.1,
            1.05,
            ok=abs(off) <= 0.1,
            note=f"{policy}; {offered}; {under}",
        ),
        _row(
            "tokens per second, vtc over fcfs",
            "tokens/s",
            (vtc.tokens_per_s, fcfs.tokens_per_s),
            0.98,
            1.0,
            ok=vtc.tokens_per_s >= 0.98 * fcfs.tokens_per_s,
        ),
    ]


def _isolation_rows(waits: dict[str, list[float]]) -> list[Row]:
    alone, vtc, fcfs = (statistics.median(waits[name]) * 1e3 for name in ("alone", "vtc", "fcfs"))
    counts = ", ".join(f"{len(waits[name])} {name}" for name in waits)
    load = (
        f"{ALONE_PROMPT_TOKENS}/{ALONE_OUTPUT_TOKENS} tokens every {ALONE_EVERY_S} s beside {FLOOD_STREAMS} waiting of "
        f"{FLOOD_PROMPT_TOKENS}/{FLOOD_OUTPUT_TOKENS}"
    )
    return [
        _row(
            "median TTFT beside a flood over alone, vtc",
            "ms",
            (vtc, alone),
            1.5,
            1.2,
            ok=vtc <= 1.5 * alone,
            note=f"fairness: {SHORT % 'vtc'}; engine threads: {ISOLATION_THREADS}; {load}; requests: {counts}",
        ),
        _row("median TTFT beside a flood over alone, fcfs", "ms", (fcfs, alone), 5.0, 5.0, ok=fcfs >= 5 * alone),
    ]


def _row(
    metric: str, unit: str, figures: tuple[float, float], must: float, stretch: float, *, ok: bool, note: str = ""
) -> Row:
    ours, reference = figures
    return Row(
        metric=metric,
        unit=unit,
        ours=ours,
        reference=reference,
        ratio=ours / reference,
        must=must,
        stretch=stretch,
        ok=ok,
        rounds=1,
        spread=0.0,
        load_average=os.getloadavg()[0],
        note=note,
    )


# --- the services ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def services(fairness: str, engine: EngineSettings) -> Iterator[House]:
    """The four services under `fairlead.yaml` with this section; its tenants are `TENANTS`."""
    with tempfile.TemporaryDirectory(prefix="fairlead-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        (folder / "data").mkdir()
        text = re.sub(r"(?ms)^fairness:.*?(?=^\w)", f"fairness: {fairness}\n", PATIENT)
        (folder / "policy.yaml").write_text(text)
        tenants = [
            {"name": each, "tier": "free", "keys": [{"id": f"key_{each}", "sha256": digest(_secret(each))}]}
            for each in TENANTS
        ]
        # YAML reads JSON.
        (folder / "data" / "tenants.yaml").write_text(json.dumps({"version": 1, "tenants": tenants}))
        deployment = Deployment(
            data=str(folder / "data"),
            policy=str(folder / "policy.yaml"),
            http=HttpSettings(port=0),
            engine=engine,
        )
        port, _ = start(deployment, folder, stack)
        yield House(port, deployment.resolved())


def _secret(tenant: str) -> str:
    return f"fl-bench-{tenant}"


def _request(tenant: str, prompt_tokens: int, output_tokens: int, draw: random.Random) -> bytes:
    body = json.dumps(
        {
            "model": "demo",
            "prompt": [draw.randint(FIRST_TOKEN_ID, LAST_TOKEN_ID) for _ in range(prompt_tokens)],
            "max_tokens": output_tokens,
            "stream": True,
            "ignore_eos": True,
        }
    )
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\nconnection: close\r\n"
        f"authorization: Bearer {_secret(tenant)}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()


async def keep(house: House, load: Load, streams: int) -> None:
    """So many requests at any time, until cancelled."""

    async def one() -> None:
        while True:
            reader = await load.ask(house)
            try:
                await reader.ended
            finally:
                reader.close()
            load.over()

    async with asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(one())


def _drawn(draw: random.Random) -> tuple[int, int]:
    return draw.randint(*PROMPT_TOKENS), draw.randint(*OUTPUT_TOKENS)


def _long(_draw: random.Random) -> tuple[int, int]:
    return ALONE_PROMPT_TOKENS, ALONE_OUTPUT_TOKENS


def _short(_draw: random.Random) -> tuple[int, int]:
    return FLOOD_PROMPT_TOKENS, FLOOD_OUTPUT_TOKENS


# --- shares ---------------------------------------------------------------------------------------------------------


async def _service(house: House) -> dict[str, dict[str, Any]]:
    report = await asyncio.to_thread(ask, house.deployment, "fairness")
    rows = {row["tenant"]: row for row in report["tenants"]}
    return {tenant: {**rows[tenant], "max_gap_ratio": report["max_gap_ratio"]} for tenant in TENANTS if tenant in rows}


async def _capacity(house: House) -> float:
    """Requests per second that are served when there is always more to do."""
    task = asyncio.ensure_future(keep(house, Load("steady", _drawn, 1), CAPACITY_STREAMS))
    await asyncio.sleep(CAPACITY_S / 2)
    before = (await _service(house))["steady"]["num_requests"]
    await asyncio.sleep(CAPACITY_S)
    after = (await _service(house))["steady"]["num_requests"]
    await end(task)
    return float(after - before) / CAPACITY_S


async def _shares(house: House, rate: float) -> Shares:
    tasks = [
        asyncio.ensure_future(_offer(house, Load("steady", _drawn, 2), rate)),
        asyncio.ensure_future(_offer(house, Load("flood", _drawn, 3), MANY_TIMES * rate)),
    ]
    await asyncio.sleep(WARM_S)
    before = await _service(house)
    began_s = asyncio.get_running_loop().time()
    await asyncio.sleep(SHARES_S)
    after = await _service(house)
    took_s = asyncio.get_running_loop().time() - began_s
    for task in tasks:
        await end(task)
    for tenant in TENANTS:
        backlogged_s = after[tenant]["backlogged_s"] - before[tenant]["backlogged_s"]
        if backlogged_s < 0.95 * took_s:
            raise RuntimeError(f"this run is void: {tenant} was backlogged for {backlogged_s:.0f} of {took_s:.0f} s")
    had = {
        tenant: [after[tenant][name] - before[tenant][name] for name in ("prompt_tokens", "output_tokens")]
        for tenant in TENANTS
    }
    cost = {tenant: prompt + 2.0 * output for tenant, (prompt, output) in had.items()}
    total = sum(sum(tokens) for tokens in had.values())
    return Shares(cost["steady"], cost["flood"], total / took_s, after["flood"]["max_gap_ratio"])


async def _offer(house: House, load: Load, rate: float) -> None:
    """Requests at random times, whatever becomes of those before, until cancelled."""
    loop = asyncio.get_running_loop()
    due_s = loop.time()
    kept: set[Timed] = set()
    try:
        while True:
            due_s += load.draw.expovariate(rate)
            await asyncio.sleep(due_s - loop.time())
            kept = {reader for reader in kept if not reader.ended.done()}
            kept.add(await load.ask(house))
    finally:
        for reader in kept:
            reader.close()


# --- isolation ------------------------------------------------------------------------------------------------------


async def _isolation(house: House, *, flooded: bool) -> list[float]:
    """Seconds to the first token of the tenant that asks for little."""
    steady = Load("steady", _long, 5 if flooded else 4)
    flood = asyncio.ensure_future(keep(house, Load("flood", _short, 6), FLOOD_STREAMS if flooded else 0))
    await asyncio.sleep(FLOOD_AHEAD_S)
    loop = asyncio.get_running_loop()
    due_s = loop.time()
    readers = []
    for _ in range(int(ISOLATION_S / ALONE_EVERY_S)):
        due_s += steady.draw.uniform(0.5, 1.5) * ALONE_EVERY_S
        await asyncio.sleep(due_s - loop.time())
        readers.append(await steady.ask(house))
    await asyncio.gather(*(reader.ended for reader in readers))
    await end(flood)
    if late := [reader for reader in readers if reader.ttft_s is None]:
        said = b"".join(late[0].pieces)[-300:]
        raise RuntimeError(f"this run is void: {len(late)} requests had no token; one answer ends with {said!r}")
    return [reader.ttft_s for reader in readers if reader.ttft_s is not None]


async def end(task: "asyncio.Future[None]") -> None:
    """Cancel it and wait until it is over."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
