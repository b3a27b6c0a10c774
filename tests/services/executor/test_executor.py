import asyncio
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.interface import EngineError, EngineSettings, Sampling, SequenceStart
from engine.paced import PacedEngine
from services.executor.service import Executor, describe
from services.framing import encode_frame
from services.runtime import ReadyFile
from services.settings import Deployment
from services.transport import Identity, listen
from services.wire_steps import ExecutorReady, ForgetMessage, StepFailed, StepMessage, StepResult

SETTINGS = EngineSettings(kind="paced", paced_step_s=0.004)


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    made = Deployment(data=str(tmp_path)).resolved()
    Path(made.streams.secret_file).write_bytes(b"s" * 32)
    return made


def step(number: int, sequences: list[int], position: int = 2, starts: tuple[int, ...] = ()) -> StepMessage:
    rows = len(sequences)
    tokens = np.array([4, 5, 6], np.int32).tobytes()
    return StepMessage(
        step=number,
        sequences=np.array(sequences, np.int64).tobytes(),
        positions=np.full(rows, position, np.int32).tobytes(),
        num_tokens=np.ones(rows, np.int32).tobytes(),
        samples=np.ones(rows, np.bool_).tobytes(),
        num_new_blocks=np.zeros(rows, np.int32).tobytes(),
        new_blocks=b"",
        starts=[SequenceStart(sequence, tokens, 3, Sampling(seed=sequence)) for sequence in starts],
        released=[],
    )


class Watched(PacedEngine):
    """A paced engine that notes the order of calls."""

    def __init__(self) -> None:
        super().__init__(SETTINGS, 1000, 4096)
        self.calls: list[object] = []
        self.copied: list[tuple[int, int]] = []

    def launch(self, step) -> None:
        self.calls.append(f"launch {step.step}")
        self.copied += zip(step.copied.tolist(), step.copies.tolist(), strict=True)
        if step.step == 666:
            raise EngineError("the device is on fire")
        super().launch(step)

    def collect(self):
        output = super().collect()
        self.calls.append(f"collect {output.step}")
        return output

    def forget(self, sequences: list[int]) -> None:
        if sequences:
            self.calls.append(f"forget {sequences}")
        super().forget(sequences)


class Running:
    """An executor in a thread and the listener it connects to."""

    def __init__(self, deployment: Deployment, heard) -> None:
        self.deployment = deployment
        self.heard = heard
        self.engine = Watched()
        self.error: BaseException | None = None
        self.ready = Path(deployment.run) / "executor.ready"
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            Executor(self.engine, self.deployment, ReadyFile(Path(self.deployment.run), "executor")).run()
        except EngineError as error:
            self.error = error

    async def start(self) -> "Running":
        await self.listen()
        self.thread.start()
        await self.heard.count("received ExecutorReady")
        return self

    async def listen(self) -> None:
        self.listener = await listen(self.deployment.streams.scheduler, Identity("scheduler"), b"s" * 32, self.heard)

    async def fail(self) -> None:
        """End the thread the way an engine ends it."""
        if self.thread.is_alive():
            self.heard.streams[-1].send(step(666, []))
            await asyncio.to_thread(self.thread.join, 10)
        await self.listener.close()


@pytest.fixture
async def running(deployment, recorder):
    made = await Running(deployment, recorder()).start()
    yield made
    await made.fail()


async def test_an_executor_says_what_it_offers_and_answers_each_step(running) -> None:
    assert (await running.heard.message(ExecutorReady)).info.vocabulary_size == 1000
    stream = running.heard.streams[0]
    stream.send(step(1, [7, 8], starts=(7, 8)))
    result = await running.heard.message(StepResult)
    assert result.step == 1
    assert len(np.frombuffer(result.tokens, np.int32)) == 2
    assert result.launched_ns <= result.computed_ns <= result.returned_ns


async def test_the_copies_of_a_step_reach_the_engine(running) -> None:
    copying = step(2, [7])
    copying.copied, copying.copies = (np.array(blocks, np.int32).tobytes() for blocks in ([3, 4], [8, 9]))
    for message in (step(1, [7], starts=(7,)), copying):
        running.heard.streams[0].send(message)
    await running.heard.message(StepResult, 2)
    assert running.engine.copied == [(3, 8), (4, 9)]


async def test_a_step_that_waits_is_launched_before_the_result_of_the_one_before_is_collected(running) -> None:
    waiting = (step(1, [7], starts=(7,)), step(2, [7]), step(3, [7]))
    running.heard.streams[0]._transport.write(b"".join(map(encode_frame, waiting)))
    await running.heard.message(StepResult, 3)
    assert running.engine.calls.index("launch 2") < running.engine.calls.index("collect 1")
    assert running.engine.calls.index("launch 3") > running.engine.calls.index("collect 1")


async def test_sequences_are_forgotten_between_steps(running) -> None:
    stream = running.heard.streams[0]
    stream.send(step(1, [7], starts=(7,)))
    stream.send(ForgetMessage([7]))
    stream.send(step(2, []))
    await running.heard.message(StepResult, 2)
    assert "forget [7]" in running.engine.calls


async def test_a_lost_scheduler_empties_the_engine_and_a_new_one_is_found(running) -> None:
    stream = running.heard.streams[0]
    stream.send(step(1, [7, 8], starts=(7, 8)))
    await running.heard.message(StepResult)
    first = running.listener
    await first.close()
    await running.listen()
    await running.heard.count("received ExecutorReady", 2)
    assert "forget [7, 8]" in running.engine.calls
    epochs = [stream.peer.epoch for stream in running.heard.streams]
    assert epochs == sorted(set(epochs))


async def test_a_failing_engine_is_reported_before_the_process_ends(running) -> None:
    running.heard.streams[0].send(step(666, []))
    failed = await running.heard.message(StepFailed)
    assert (failed.step, failed.message) == (666, "the device is on fire")
    await asyncio.to_thread(running.thread.join, 10)
    assert str(running.error) == "the device is on fire"


def test_the_line_at_start_says_what_the_pool_holds_and_why() -> None:
    info = msgspec.structs.replace(PacedEngine(SETTINGS, 1000, 4096).info, kv_bytes=2**31, kv_bound="a reason")
    assert describe(info).endswith(
        "KV pool: 16,777,216 tokens, 4096.0 sequences of 4,096, 2.00 GiB; bounded by a reason"
    )
