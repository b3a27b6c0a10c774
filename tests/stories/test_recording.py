"""A run that was recorded: it replays to the same commands, and shows what a reader who left gave back."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from deployed import House, fairlead

from policies.commands import Command, Finish, StartStep
from policies.event_log import Record, read_records
from policies.events import CancelRequested
from policies.scheduling.core import SchedulerCore
from policies.simulation.driver import Simulation
from policies.simulation.recording import fitted_device, read_recording

LONG, SHORT = 1500, 40
NUM_STAYING = 28


async def one_leaves_and_others_stay(running: House) -> list[int]:
    """A long stream is dropped after a few tokens beside short ones; their token counts are returned."""
    client = openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=running.key, max_retries=0, timeout=120)

    def stream(max_tokens: int, prompt: str) -> object:
        return client.completions.create(
            model="demo", prompt=prompt, max_tokens=max_tokens, stream=True, extra_body={"ignore_eos": True}
        )

    async def leaving() -> None:
        chunks = await stream(LONG, "a reader who leaves " * 20)  # type: ignore[misc]
        async with chunks:
            for _ in range(5):
                await anext(aiter(chunks))

    async def staying(index: int) -> int:
        answer = await client.completions.create(
            model="demo", prompt=f"reader {index}", max_tokens=SHORT, extra_body={"ignore_eos": True}
        )
        return answer.usage.completion_tokens  # type: ignore[union-attr]

    counts, _ = await asyncio.gather(asyncio.gather(*map(staying, range(NUM_STAYING - 1))), leaving())
    counts.append(await staying(NUM_STAYING))
    await client.close()
    return counts


def replayed(log: Path) -> Iterator[tuple[SchedulerCore, Record, list[Command]]]:
    core = SchedulerCore()
    for record in read_records(log.read_bytes()):
        commands = core.handle(record.event, record.now)
        core.check()
        yield core, record, commands


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one run, which is over."""
    folder = tmp_path_factory.mktemp("recording")
    running = House(folder).start("--record", str(folder / "log"))
    counts = asyncio.run(one_leaves_and_others_stay(running))
    assert running.stop() == 0, running.text
    assert counts == [SHORT] * NUM_STAYING
    return folder / "log"


@pytest.mark.slow
def test_a_reader_who_leaves_gives_its_blocks_back_by_the_next_plan(log: Path) -> None:
    cancelled: list[int] = []
    waiting_for_plan: dict[int, list[int]] = {}
    for core, record, commands in replayed(log / "scheduler.log"):
        if isinstance(record.event, CancelRequested) and record.event.request not in cancelled:
            cancelled.append(record.event.request)
            waiting_for_plan[record.event.request] = []
            # The cancel itself frees the blocks: whatever is planned from here on may use them.
            assert record.event.request not in core.sequences
        for command in commands:
            match command:
                case StartStep():
                    for request in list(waiting_for_plan):
                        assert request in command.plan.released
                        assert request not in command.plan.sequences
                        del waiting_for_plan[request]
                case Finish():
                    assert command.output_tokens < LONG
    assert len(cancelled) == 1
    assert waiting_for_plan == {}
    assert core.snapshot().used_blocks == 0


@pytest.mark.slow
def test_a_recorded_run_replays_to_the_identical_commands(log: Path, tmp_path: Path) -> None:
    verified = fairlead("replay", "--log", str(log), "--verify")
    assert "identical" in verified.stdout

    # And it is read back as a workload with what became of it, that its own fitted executor can be given again.
    recording = read_recording((log / "admission.log").read_bytes(), (log / "scheduler.log").read_bytes())
    (left,) = (served for served in recording.served if served.cancellation)
    assert left.output_tokens < left.asked.declared_tokens == LONG
    stayed = [served.output_tokens for served in recording.served if not served.cancellation]
    assert stayed == [SHORT] * NUM_STAYING
    assert all(step.planned_at_s < step.ended_at_s < step.heard_at_s for step in recording.steps)
    fitted = fitted_device([recording], "this machine")
    outcome = Simulation(recording.policies[0].document, recording.requests, fitted.device(1), check=True).run()
    assert [served.output_tokens for served in outcome.served] == [served.output_tokens for served in recording.served]

    # One byte of one answer changed: the difference is found and named.
    damaged = shutil.copytree(log, tmp_path / "damaged")
    content = bytearray((damaged / "scheduler.log").read_bytes())
    content[content.index(b"StartStep")] ^= 1
    (damaged / "scheduler.log").write_bytes(content)
    refuted = fairlead("replay", "--log", str(damaged), "--verify", check=False)
    assert refuted.returncode == 1
    assert "scheduler.log" in refuted.stdout + refuted.stderr
