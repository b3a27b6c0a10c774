"""A prefix that was found gives the same tokens as one that was computed: the scheduler's core and a real engine."""

import time
from array import array
from typing import Any

import numpy as np
import pytest

from engine.interface import Engine, Sampling, SequenceStart, Step
from engine.kv_cache import KvCache
from policies.commands import Deliver, Finish, Forget, StartStep
from policies.events import ExecutorJoined, PolicyApplied, Released, Started, StepEnded
from policies.scheduling.core import SchedulerCore
from services.scheduler.sequences import Sequences
from services.wire import Dispatch, Submit

POLICY = """version: 1
name: t
classes: [{name: all, ttft_s: 1, tbt_s: 1}]
batching:
  token_budget: 48
  max_sequences: 12
  stages:
    - decode:  {order: [arrival]}
    - prefill: {from: started, order: [admission]}
    - prefill: {from: waiting, order: [arrival]}
kv: {share: SHARE, watermark: 0}
"""


class Server:
    """The core, an engine, and between them what the scheduler service does; no stream and no clock."""

    def __init__(self, engine: Engine, share: str, num_blocks: int, policy: str = POLICY) -> None:
        self.engine = engine
        self.core = SchedulerCore()
        self.sequences = Sequences()
        self.sequences.salt.follow([engine.info.block_tokens])
        self.outputs: dict[int, list[int]] = {}
        self.num_computed = 0
        self.num_copied = 0
        self._plans: list[StartStep] = []
        self._send(Started(wall_s=0.0))
        self._send(PolicyApplied(revision=1, document=policy.replace("SHARE", share).encode()))
        info = engine.info
        self._send(ExecutorJoined(0, num_blocks, info.block_tokens, info.max_sequence_tokens, 2, info.copies_blocks))

    def ask(self, request: int, prompt: list[int], samplings: list[Sampling], output: int) -> None:
        submit = Submit(request, "acme", "free", array("i", prompt).tobytes(), output, samplings)
        keys = self.sequences.add(Dispatch(submit, "all", 0.0, 0), 0)
        for choice in range(len(samplings)):
            self.outputs[request + choice] = []
        self._send(
            Released(
                request,
                "all",
                len(prompt),
                output,
                len(samplings),
                owner="acme",
                prompt_keys=keys,
                key_tokens=self.sequences.salt.key_tokens,
            )
        )

    def run(self, num_steps: int = 10**6) -> None:
        """Until nothing is left to compute, or for so many steps."""
        while self._plans and num_steps:
            num_steps -= 1
            self._end_step()

    def _send(self, event: Any) -> None:
        commands = self.core.handle(event, time.monotonic())
        self.core.check()
        for command in commands:
            match command:
                case StartStep():
                    self._launch(command)
                case Deliver():
                    for row in command.rows.tolist():
                        self.sequences.by_id[self._sampled[row]].output.append(self._tokens[row])
                        self.outputs[self._sampled[row]].append(self._tokens[row])
                case Forget():
                    self.engine.forget(command.released)
                case Finish():
                    self.sequences.remove(command.request)

    def _launch(self, command: StartStep) -> None:
        plan = command.plan
        self._plans.append(command)
        self.num_computed += int(plan.num_tokens.sum())
        self.num_copied += len(plan.copies)
        starts: list[SequenceStart] = [
            self.sequences.start(*start) for start in zip(plan.starts, plan.cached, strict=True)
        ]
        self.engine.launch(
            Step(
                step=command.step,
                sequences=plan.sequences,
                positions=plan.positions,
                num_tokens=plan.num_tokens,
                samples=plan.samples,
                num_new_blocks=plan.num_new_blocks,
                new_blocks=plan.new_blocks,
                starts=starts,
                released=plan.released,
                copied=plan.copied,
                copies=plan.copies,
            )
        )

    def _end_step(self) -> None:
        plan = self._plans.pop(0).plan
        output = self.engine.collect()
        self._sampled = plan.sequences[plan.samples].tolist()
        self._tokens = output.tokens.tolist()
        keys = self.sequences.keys_reached(plan.sequences, plan.positions + plan.num_tokens)
        ended = plan.sequences[plan.samples][output.ended].tolist()
        self._send(StepEnded(executor=0, step=output.step, step_time_s=0.01, ended=ended, keys=keys))


def workload(seed: int) -> list[tuple[list[int], list[Sampling]]]:
    """Prompts that begin alike, go on alike or are the same, some with several choices."""
    source = np.random.default_rng(seed)
    stems = [source.integers(3, 199, length).tolist() for length in (70, 33, 16, 9)]
    asked = []
    for number in range(18):
        stem = stems[source.integers(len(stems))]
        rest = source.integers(3, 199, source.integers(0, 30)).tolist() if number % 3 else []
        num_choices = 3 if number % 5 == 0 else 1
        samplings = [Sampling(temperature=0.9 * (number % 2), seed=10 * number + c) for c in range(num_choices)]
        asked.append((stem + rest, samplings))
    return asked


def serve(engine: Engine, share: str, asked: list[Any], num_blocks: int) -> Server:
    server = Server(engine, share, num_blocks)
    for number, (prompt, samplings) in enumerate(asked):
        server.ask(10 * number, prompt, samplings, output=24)
        server.run(num_steps=3)
    server.run()
    # What was said becomes the next prompt, as in a chat.
    for number, (prompt, _) in enumerate(asked[:6]):
        said = prompt + server.outputs[10 * number] + [7, 8, 9]
        server.ask(1000 + 10 * number, said, [Sampling(temperature=0)], output=8)
    server.run()
    assert server.core.sequences == {}
    return server


@pytest.mark.parametrize("variant", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("num_blocks", [14, 400])
def test_tokens_are_the_same_bits_whether_their_prefix_was_found_or_computed(
    variant: str, num_blocks: int, open_engine: Any
) -> None:
    engine = open_engine(variant)
    asked = workload(seed=num_blocks)
    cold = serve(engine, "none", asked, num_blocks)
    warm = serve(engine, "tenant", asked, num_blocks)
    assert warm.outputs == cold.outputs
    assert cold.core.snapshot().num_prefix_hits == 0
    snapshot = warm.core.snapshot()
    assert snapshot.num_prefix_hits > 20
    assert warm.num_copied > 5
    assert warm.num_computed < cold.num_computed
    if num_blocks == 14:
        assert snapshot.num_evictions > 0
        assert snapshot.num_preemptions > 0


def test_a_copy_reads_every_block_before_it_writes_one(open_engine: Any) -> None:
    engine = open_engine("llama")
    cache: KvCache = engine._cache
    for block in range(4):
        for layer in (*cache.keys, *cache.values):
            layer[block + 1] = block
    cache.copy(np.array([0, 1, 2], np.int32), np.array([1, 2, 0], np.int32))
    for layer in (*cache.keys, *cache.values):
        assert [int(layer[block + 1].unique()) for block in range(4)] == [2, 0, 1, 3]
