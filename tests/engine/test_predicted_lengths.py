"""A_min and A_max on a real engine: latency in steps, and the same tokens whoever was preempted (prediction, T10)."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from engine.interface import Engine, Sampling
from policies.events import Released, StepEnded
from tests.engine.test_prefix_cache import Server

POLICIES = Path(__file__).resolve().parents[2] / "policies"
LONGEST = 160
ERROR = "{kind: oracle, error: 0.95, position: random}"


def document(name: str) -> str:
    """The shipped file, with intervals that are wide from the first request on instead of learnt ones."""
    text = (POLICIES / f"{name}.yaml").read_text()
    return f"{text[: text.index('prediction:')]}prediction: {ERROR}\n"


class Forced(Server):
    """Sequences end at lengths that were drawn, and it is noted in which step."""

    def __init__(self, engine: Engine, num_blocks: int, policy: str, lengths: list[int]) -> None:
        self.lengths = lengths
        self.num_steps = 0
        self.ended_in: dict[int, int] = {}
        super().__init__(engine, "none", num_blocks, policy)

    def _send(self, event: Any) -> None:
        match event:
            case Released():
                event = msgspec.structs.replace(event, output_tokens=self.lengths[event.request])
            case StepEnded():
                self.num_steps += 1
                more = [s for s in self._sampled if len(self.outputs[s]) + 1 == self.lengths[s]]
                self.ended_in.update(dict.fromkeys(more, self.num_steps))
                event = msgspec.structs.replace(event, ended=more)
        super()._send(event)


@pytest.mark.parametrize("num_blocks", [64])
def test_lower_bounds_serve_sooner_than_upper_bounds_and_change_no_token(num_blocks: int, open_engine: Any) -> None:
    engine = open_engine("llama")
    source = np.random.default_rng(4)
    lengths = np.exp2(source.uniform(2, np.log2(LONGEST), 32)).astype(int).tolist()
    prompts = [source.integers(3, 199, source.integers(8, 60)).tolist() for _ in lengths]

    def serve(policy: str, blocks: int) -> Forced:
        server = Forced(engine, blocks, document(policy), lengths)
        for number, prompt in enumerate(prompts):
            server.ask(number, prompt, [Sampling(temperature=0)], output=LONGEST)
        server.run()
        assert [len(server.outputs[number]) for number in range(len(lengths))] == lengths
        return server

    undisturbed = serve("amin", 512)
    amin, amax = serve("amin", num_blocks), serve("amax", num_blocks)
    assert undisturbed.core.snapshot().num_preemptions == 0
    assert amin.core.snapshot().num_preemptions > 0
    assert amin.outputs == amax.outputs == undisturbed.outputs
    latency = {s: np.mean(list(s.ended_in.values())) for s in (amin, amax)}
    assert latency[amin] <= 0.8 * latency[amax]
