"""An executor dies at each moment of its work, and its readers see a pause. For processes: `fairlead bench chaos`."""

import threading
from pathlib import Path

import pytest
from joined_services import Ends, House, expected

from engine.interface import EngineError, Step, StepOutput

PROMPT, OUTPUT = 700, 12
"""More than one step of prompt under the policy's budget of 512 tokens."""


class Dies:
    """Makes the first engine die when `moment` says so."""

    def __init__(self, moment: str) -> None:
        self.moment = moment
        self.num_launched = self.num_collected = 0
        self.dead = threading.Event()

    def look(self, now: bool) -> None:
        if now and not self.dead.is_set():
            self.dead.set()
            raise EngineError("CUDA error: an illegal memory access was encountered")

    def launches(self, step: Step) -> None:
        self.num_launched += 1
        prefill = bool((step.num_tokens > 1).any())
        self.look(self.moment == "during prefill" and prefill and self.num_launched == 2)
        self.look(self.moment == "between steps" and not prefill and self.num_launched == 5)

    def collects(self) -> None:
        self.num_collected += 1
        self.look(self.moment == "with a step in flight" and self.num_collected == 6)


@pytest.mark.parametrize("moment", ["during prefill", "between steps", "with a step in flight"])
async def test_an_executor_that_dies_costs_a_pause(tmp_path: Path, recorder, monkeypatch, moment: str) -> None:
    dies = Dies(moment)
    plain_launch, plain_collect = Ends.launch, Ends.collect

    def launch(engine: Ends, step: Step) -> None:
        dies.launches(step)
        plain_launch(engine, step)

    def collect(engine: Ends) -> StepOutput:
        dies.collects()
        return plain_collect(engine)

    monkeypatch.setattr(Ends, "launch", launch)
    monkeypatch.setattr(Ends, "collect", collect)
    house = await House(tmp_path, recorder()).start()
    request = house.submit(PROMPT, OUTPUT)
    told = house.gateway.messages
    await house.gateway.until(lambda: any("CUDA error" in getattr(each, "trouble", "") for each in told))
    assert dies.dead.is_set()
    house.add_executor()
    ended = await house.ended(request)
    assert (ended.outcome, ended.output_tokens) == ("finished", OUTPUT)
    assert house.tokens() == {request: expected(request, PROMPT, OUTPUT)}
    await house.stop()
