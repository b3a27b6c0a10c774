"""Two admission processes share a Redis server: tenants are served alike whichever process their requests meet."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from deployed import House, fairlead

pytestmark = pytest.mark.redis

ENOUGH_S = 60.0
READERS = {"modest": 10, "greedy": 40}
NUM_ANSWERS = 160
OUTPUT_TOKENS = 30


@pytest.fixture
def redis_socket(tmp_path: Path) -> Iterator[Path]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (apt-get install redis-server)")
    command = ["redis-server", "--port", "0", "--unixsocket", "redis.sock", "--save", ""]
    server = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    yield tmp_path / "redis.sock"
    server.kill()
    server.wait()


@pytest.fixture
def house(tmp_path: Path, redis_socket: Path) -> Iterator[House]:
    house = House(tmp_path)
    deployment = {
        "version": 1,
        "store": f"unix://{redis_socket}",
        "streams": {"admission": ["unix://{run}/admission.sock", "unix://{run}/admission-2.sock"]},
        "engine": {"kind": "paced", "paced_step_s": 0.01},
    }
    file = tmp_path / "deployment.yaml"
    file.write_text(json.dumps(deployment))
    policy = house.policy.read_text()
    # Both windows together hold about ten requests: everybody else waits.
    house.policy.write_text(policy.replace("window_tokens: {pools: 3}", "window_tokens: 500"))
    assert house.policy.read_text() != policy
    house.start("--deployment", str(file))
    try:
        yield house
    finally:
        house.stop()


class Load:
    """Tenants whose readers always want something."""

    def __init__(self, house: House) -> None:
        self.url = f"{house.url}/v1/completions"
        self.keys = {tenant: house.add_key(tenant, "free") for tenant in READERS}
        self.answers: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.heard = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def running(self):
        async with aiohttp.ClientSession() as session:
            readers = [
                asyncio.create_task(self._read(session, tenant))
                for tenant, count in READERS.items()
                for _ in range(count)
            ]
            yield
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    async def more(self, num_answers: int) -> Counter[str]:
        """What each tenant got of so many answers from now on."""
        before = self.answers.copy()
        try:
            async with asyncio.timeout(ENOUGH_S), self.heard:
                await self.heard.wait_for(lambda: self.answers.total() >= before.total() + num_answers)
        except TimeoutError:
            pytest.fail(f"only {self.answers - before} in {ENOUGH_S:g} s, refused: {self.refusals}")
        return self.answers - before

    async def _read(self, session: aiohttp.ClientSession, tenant: str) -> None:
        body = {"model": "demo", "prompt": [5] * 20, "max_tokens": OUTPUT_TOKENS, "ignore_eos": True}
        headers = {"authorization": f"Bearer {self.keys[tenant]}"}
        while True:
            async with session.post(self.url, json=body, headers=headers) as answer:
                document = await answer.json()
            async with self.heard:
                if answer.status == 200:
                    assert document["usage"]["completion_tokens"] == OUTPUT_TOKENS
                    self.answers[tenant] += 1
                else:
                    self.refusals[document["error"]["code"]] += 1
                self.heard.notify_all()


async def until(holds) -> None:
    async with asyncio.timeout(ENOUGH_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def log_of(house: House, process: str) -> str:
    return (house.data / "logs" / f"{process}.log").read_text()


async def test_two_admission_processes_are_fair_together_and_one_goes_on_without_the_other(house: House) -> None:
    load = Load(house)
    second = house.run_folder / "admission-2.ready"
    async with load.running():
        await load.more(40)
        got = await load.more(NUM_ANSWERS)
        assert abs(got["modest"] - got["greedy"]) <= 0.2 * NUM_ANSWERS, got
        asked = await asyncio.to_thread(fairlead, "fairness", "--json", "--data-dir", str(house.data))
        report = json.loads(asked.stdout)
        assert report["num_replicas"] == 2
        assert report["max_gap_ratio"] <= 1
        assert report["staleness"] > 0
        assert load.refusals == {}
        ratio, staleness = report["max_gap_ratio"], report["staleness"]
        print(f"answers: {dict(got)}; largest gap ratio {ratio:.2f}, staleness {staleness:.0f}")

        house.policy.write_text(house.policy.read_text().replace("window_tokens: 500", "window_tokens: 600"))
        await until(lambda: all("policy revision 2 is in force" in log_of(house, f"admission{n}") for n in ("", "-2")))

        os.kill(int(second.read_text().split()[0]), signal.SIGKILL)
        await load.more(40)
        # What waited there was refused, and nothing else.
        assert set(load.refusals) <= {"admission_lost"}
        await until(lambda: log_of(house, "admission-2").count("policy revision") >= 3 and second.exists())
        got = await load.more(NUM_ANSWERS)
        assert abs(got["modest"] - got["greedy"]) <= 0.2 * NUM_ANSWERS, got
    usage = json.loads((await asyncio.to_thread(fairlead, "usage", "--json", "--data-dir", str(house.data))).stdout)
    counted = {row["tenant"]: row["output_tokens"] for row in usage["usage"]}
    assert all(counted[tenant] >= OUTPUT_TOKENS * load.answers[tenant] for tenant in READERS), (counted, load.answers)
