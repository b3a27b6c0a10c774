"""All services are started again, one process after the other, and no reader can tell."""

import asyncio
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest
from deployed import ROOT, House

DEPLOYMENT = """
engine: {kind: paced, paced_step_s: 0.01}
telemetry: {metrics: {gateway: null, admission: null, scheduler: null, executor: null}}
"""
NUM_READERS = 12
NUM_TOKENS = 40


async def reading(house: House, until: asyncio.Event, seen: Counter[str]) -> None:
    """One reader after another answer, on connections that are kept."""
    body = {"model": "demo", "prompt": "def f(", "max_tokens": NUM_TOKENS, "ignore_eos": True, "stream": True}
    body |= {"stream_options": {"include_usage": True}}
    headers = {"authorization": f"Bearer {house.key}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        while not until.is_set():
            async with session.post(f"{house.url}/v1/completions", json=body) as answer:
                text = await answer.text()
            whole = text.endswith("data: [DONE]\n\n") and f'"completion_tokens":{NUM_TOKENS}' in text
            seen["whole" if answer.status == 200 and whole else f"{answer.status} {text[-300:]}"] += 1


@pytest.mark.slow
async def test_every_service_is_started_again_under_load_and_no_request_fails(
    house: Callable[..., House], tmp_path: Path
) -> None:
    (tmp_path / "deployment.yaml").write_text(DEPLOYMENT)
    running = await asyncio.to_thread(house, "--deployment", str(tmp_path / "deployment.yaml"))
    processes = ("executor", "scheduler", "admission", "gateway")
    before = [running.pid(process) for process in processes]
    done, seen = asyncio.Event(), Counter[str]()
    readers = [asyncio.create_task(reading(running, done, seen)) for _ in range(NUM_READERS)]
    restart = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli", "restart", "--data-dir", str(running.data)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(restart.communicate(), 120)
    done.set()
    await asyncio.wait_for(asyncio.gather(*readers), 60)
    *lines, last = said.decode().splitlines()
    assert last == "restarted", said
    for number, process in enumerate(processes, 1):
        began, ready, *lines = lines
        assert began == f"restarting {process} ({number} of 4)"
        assert re.fullmatch(rf"{process} is ready after \d+\.\d s; .* waited .*", ready), ready
    assert lines == []
    assert set(seen) == {"whole"}, seen
    after = [running.pid(process) for process in processes]
    assert None not in after
    assert not set(before) & set(after)
