"""An executor that has a step and does not answer, among real streams."""

import asyncio
import logging
import threading
from pathlib import Path

import pytest
from joined_services import Ends, House, expected
from msgspec.structs import replace

from engine.interface import EngineError, StepOutput
from services.blocking import BlockingStream
from services.executor.service import Executor
from services.settings import WatchdogSettings


@pytest.mark.parametrize("held", ["before its first step", "in the middle"])
async def test_a_wedged_executor_is_given_up_and_fenced_off_when_it_wakes(
    tmp_path: Path, recorder, monkeypatch, held: str
) -> None:
    woken, wedged = threading.Event(), threading.Event()
    refused = threading.Event()
    num_collected = 0

    class Refusals(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "came before" in record.getMessage():
                refused.set()

    def collect(engine: Ends) -> StepOutput:
        nonlocal num_collected
        num_collected += 1
        if num_collected == (1 if held == "before its first step" else 4):
            wedged.set()
            woken.wait(60)
        return plain(engine)

    def connect(executor: Executor) -> BlockingStream:
        if executor._engine.over:
            raise EngineError("the test is over")
        return plain_connect(executor)

    plain, plain_connect = Ends.collect, Executor._connect
    monkeypatch.setattr(Ends, "collect", collect)
    monkeypatch.setattr(Executor, "_connect", connect)
    house = House(tmp_path, recorder())
    limits = WatchdogSettings(step_s=0.3, first_step_s=0.3)
    house.scheduler._deployment = replace(house.deployment, watchdog=limits)
    await house.start()
    refusals = Refusals()
    logging.getLogger().addHandler(refusals)
    try:
        request = house.submit(20, 12)
        await asyncio.to_thread(wedged.wait, 60)
        trouble = "executor 0 is given up: step"
        await house.gateway.until(
            lambda: any(trouble in getattr(each, "trouble", "") for each in house.gateway.messages)
        )
        house.add_executor()
        assert (await house.ended(request)).output_tokens == 12
        woken.set()
        # What it had computed meets a closed stream, and its successor's epoch is newer than any that it can come by.
        assert await asyncio.to_thread(refused.wait, 60)
        again = house.submit(20, 5)
        await house.ended(again)
        assert house.tokens() == {request: expected(request, 20, 12), again: expected(again, 20, 5)}
        assert sorted(house.scheduler._fleet.executors) == [1]
    finally:
        logging.getLogger().removeHandler(refusals)
        woken.set()
        await house.stop()
