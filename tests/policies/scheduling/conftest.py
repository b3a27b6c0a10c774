"""A world for the scheduler core: executors that run plans in virtual time and check each plan as an engine would."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policies.commands import Abandon, Deliver, Finish, Forget, StartStep, WakeAt, encode
from policies.events import ExecutorJoined, ExecutorLost, PolicyApplied, Released, Started, StepEnded, Woke
from policies.scheduling.core import SchedulerCore

BLOCK = 4
Tokens = tuple[int, ...]
POLICIES = Path(__file__).resolve().parents[3] / "policies"


class FakeExecutor:
    """Keeps the block tables and token counts that a real engine would."""

    def __init__(self, joined: ExecutorJoined) -> None:
        self.joined = joined
        self.tables: dict[int, list[int]] = {}
        self.computed: dict[int, int] = {}
        self.steps: list[tuple[StartStep, list[int]]] = []

    def forget(self, released: list[int]) -> None:
        for sequence in released:
            del self.tables[sequence], self.computed[sequence]

    def take(self, command: StartStep) -> None:
        """Accept a plan; AssertionError if an engine could not run it."""
        plan = command.plan
        self.forget(plan.released)
        for sequence, cached in zip(plan.starts, plan.cached, strict=True):
            assert sequence not in self.tables
            self.tables[sequence] = []
            self.computed[sequence] = cached
        blocks = plan.new_blocks.tolist()
        rows = zip(plan.sequences.tolist(), plan.positions.tolist(), plan.num_tokens.tolist(), strict=True)
        for index, (sequence, position, num_tokens) in enumerate(rows):
            count = int(plan.num_new_blocks[index])
            self.tables[sequence] += blocks[:count]
            del blocks[:count]
            assert position == self.computed[sequence]
            assert num_tokens > 0
            self.computed[sequence] = position + num_tokens
            assert self.computed[sequence] <= len(self.tables[sequence]) * self.joined.block_tokens
        assert blocks == []
        self._check_blocks()
        self.steps.append((command, plan.sequences[plan.samples].tolist()))

    def _check_blocks(self) -> None:
        held = [block for table in self.tables.values() for block in table]
        assert len(held) == len(set(held)), "a block has two owners"
        assert all(0 <= block < self.joined.num_blocks for block in held)


class World:
    """A core, its executors and a clock. Every event is followed by `core.check()`."""

    def __init__(self, policy: str | bytes = "slai", step_s: float = 0.01, **options: str) -> None:
        self.core = SchedulerCore(**options)
        self.now = 0.0
        self.step_s = step_s
        self.executors: dict[int, FakeExecutor] = {}
        self.tokens: dict[int, int] = {}
        self.token_times: dict[int, list[float]] = {}
        self.finished: dict[int, Finish] = {}
        self.log: list[bytes] = []
        self.plans: list[StartStep] = []
        self.wake_at: float | None = None
        self.revision = 0
        self.send(Started(wall_s=0.0))
        self.apply(policy)

    def apply(self, policy: str | bytes) -> None:
        document = (POLICIES / f"{policy}.yaml").read_bytes() if isinstance(policy, str) else policy
        self.revision += 1
        self.send(PolicyApplied(revision=self.revision, document=document))

    def send(self, event: object) -> list[object]:
        commands = self.core.handle(event, self.now)
        self.core.check()
        self.log.append(encode(commands))
        for command in commands:
            self._perform(command)
        return commands

    def _perform(self, command: object) -> None:
        match command:
            case StartStep():
                self.plans.append(command)
                self.executors[command.executor].take(command)
            case Deliver():
                _, sampled = self._ended
                for row in command.rows.tolist():
                    self.tokens[sampled[row]] = self.tokens.get(sampled[row], 0) + 1
                    self.token_times.setdefault(sampled[row], []).append(self.now)
                assert len(command.rows) == len(command.finish)
            case Forget():
                self.executors[command.executor].forget(command.released)
            case Finish():
                assert command.request not in self.finished
                self.finished[command.request] = command
            case WakeAt():
                self.wake_at = command.at_s
            case Abandon():
                del self.executors[command.executor]

    def join(self, executor: int = 0, num_blocks: int = 1000, block_tokens: int = 16, **options: Any) -> None:
        options = {"max_sequence_tokens": 8192, "max_steps_in_flight": 2} | options
        joined = ExecutorJoined(executor=executor, num_blocks=num_blocks, block_tokens=block_tokens, **options)
        self.executors[executor] = FakeExecutor(joined)
        self.send(joined)

    def lose(self, executor: int) -> None:
        del self.executors[executor]
        self.send(ExecutorLost(executor=executor))

    def release(self, request: int, prompt: int, output: int, **options: object) -> list[object]:
        options = {"slo_class": "free"} | options
        return self.send(Released(request=request, prompt_tokens=prompt, max_output_tokens=output, **options))

    def busy(self) -> list[int]:
        return [executor for executor, fake in self.executors.items() if fake.steps]

    def end_step(
        self,
        executor: int = 0,
        ended: tuple[int, ...] = (),
        step_s: float | None = None,
        failed: dict[int, str] | None = None,
    ) -> list[object]:
        """The oldest step of an executor ends, `step_s` from now."""
        duration = self.step_s if step_s is None else step_s
        self.now += duration
        self._ended = self.executors[executor].steps.pop(0)
        step = self._ended[0].step
        return self.send(
            StepEnded(executor=executor, step=step, step_time_s=duration, ended=list(ended), failed=failed or {})
        )

    def wake(self) -> list[object]:
        assert self.wake_at is not None
        self.now = max(self.now, self.wake_at)
        self.wake_at = None
        return self.send(Woke())

    def drain(self, limit: int = 20_000) -> None:
        """Run until nothing is in flight."""
        for _ in range(limit):
            busy = self.busy()
            if not busy:
                return
            self.end_step(busy[0])
        raise AssertionError("the world does not come to rest")

    def used_blocks(self) -> int:
        return self.core.snapshot().used_blocks


def key_of(tokens: Tokens) -> bytes:
    return hashlib.blake2b(repr(tokens).encode(), digest_size=16).digest()


def keys_of(tokens: Tokens, size: int = BLOCK) -> bytes:
    ends = sorted({*range(size, len(tokens) + 1, size), len(tokens)})
    return b"".join(key_of(tokens[:end]) for end in ends)


class Texts:
    """Which tokens each sequence has: its prompt, and outputs that follow from its number."""

    def __init__(self) -> None:
        self.prompts: dict[int, Tokens] = {}

    def of(self, sequence: int, num_tokens: int) -> Tokens:
        prompt = self.prompts[sequence]
        outputs = tuple(1000 * sequence + index for index in range(num_tokens - len(prompt)))
        return (prompt + outputs)[:num_tokens]


class RememberingExecutor(FakeExecutor):
    """KV slots hold the tokens they were computed from: of the position and of all before it."""

    def __init__(self, joined: ExecutorJoined, texts: Texts) -> None:
        super().__init__(joined)
        self.texts = texts
        self.memory: dict[tuple[int, int], Tokens] = {}
        self.num_computed = 0

    def take(self, command: Any) -> None:
        super().take(command)
        plan, size = command.plan, self.joined.block_tokens
        assert self.joined.copies_blocks or not len(plan.copies)
        read = [{offset: self.memory.get((block, offset)) for offset in range(size)} for block in plan.copied.tolist()]
        for block, slots in zip(plan.copies.tolist(), read, strict=True):
            self.memory.update({(block, offset): tokens for offset, tokens in slots.items() if tokens is not None})
        self.num_computed += int(plan.num_tokens.sum())
        rows = list(zip(plan.sequences.tolist(), plan.positions.tolist(), plan.num_tokens.tolist(), strict=True))
        for sequence, position, num_tokens in rows:
            for at in range(position, position + num_tokens):
                self.memory[self._slot(sequence, at)] = self.texts.of(sequence, at + 1)
        for sequence, position, num_tokens in rows:
            for at in range(position + num_tokens):
                assert self.memory[self._slot(sequence, at)] == self.texts.of(sequence, at + 1), "reads another's KV"

    def _slot(self, sequence: int, position: int) -> tuple[int, int]:
        block, offset = divmod(position, self.joined.block_tokens)
        return self.tables[sequence][block], offset

    def _check_blocks(self) -> None:
        """Blocks may have several owners here: the memory tells whether that is right."""


class SharingWorld(World):
    """A world whose requests have tokens, and whose executors remember them."""

    def __init__(self, policy: bytes, key_tokens: int = BLOCK) -> None:
        super().__init__(policy)
        self.texts = Texts()
        self.key_tokens = key_tokens
        self.num_keys: dict[int, int] = {}

    def join(self, executor: int = 0, num_blocks: int = 1000, block_tokens: int = BLOCK, **options: Any) -> None:
        options = {"max_sequence_tokens": 8192, "max_steps_in_flight": 2, "copies_blocks": True} | options
        joined = ExecutorJoined(executor=executor, num_blocks=num_blocks, block_tokens=block_tokens, **options)
        self.executors[executor] = RememberingExecutor(joined, self.texts)
        self.send(joined)

    def ask(self, request: int, prompt: Tokens, output: int = 4, *, owner: str = "acme", **options: Any) -> None:
        for choice in range(options.get("num_choices", 1)):
            self.texts.prompts[request + choice] = prompt
            self.num_keys[request + choice] = len(prompt) // self.key_tokens
        options = {
            "slo_class": "free",
            "owner": owner,
            "prompt_keys": keys_of(prompt, self.key_tokens),
            "key_tokens": self.key_tokens,
        } | options
        self.send(Released(request=request, prompt_tokens=len(prompt), max_output_tokens=output, **options))

    def end_step(self, executor: int = 0, ended: tuple[int, ...] = (), step_s: float | None = None) -> list[object]:
        self.now += self.step_s
        self._ended = self.executors[executor].steps.pop(0)
        plan = self._ended[0].plan
        keys = []
        for sequence, end in zip(plan.sequences.tolist(), (plan.positions + plan.num_tokens).tolist(), strict=True):
            known, reached = self.num_keys[sequence], end // self.key_tokens
            if reached > known:
                tokens = self.texts.of(sequence, end)
                new = b"".join(key_of(tokens[: self.key_tokens * number]) for number in range(known + 1, reached + 1))
                keys.append((sequence, new))
                self.num_keys[sequence] = reached
        step = self._ended[0].step
        return self.send(StepEnded(executor=executor, step=step, step_time_s=self.step_s, ended=list(ended), keys=keys))

    def computed(self, executor: int = 0) -> int:
        """Tokens computed so far, prompts and decodes."""
        return int(self.executors[executor].num_computed)


@pytest.fixture
def world() -> Callable[..., World]:
    """`world(policy, ...)` makes one; `policy` is a shipped policy's name or a document."""
    return World


@pytest.fixture
def shipped() -> Callable[[str], bytes]:
    """The text of a shipped policy."""
    return lambda name: (POLICIES / f"{name}.yaml").read_bytes()


@pytest.fixture
def sharing() -> type[SharingWorld]:
    """Like `world`, but requests have tokens and may share KV."""
    return SharingWorld
