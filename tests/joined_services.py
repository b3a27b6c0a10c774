"""Admission, scheduler and a paced executor joined over Unix sockets, with a gateway that a test plays."""

import asyncio
import logging
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from engine.interface import EngineError, EngineSettings, Sampling, Step, StepOutput
from engine.paced import PacedEngine
from services.admission.service import AdmissionService
from services.executor.service import Executor
from services.runtime import ReadyFile
from services.scheduler.service import SchedulerService
from services.settings import Deployment
from services.transport import Identity, Link
from services.wire import Capacity, PolicyNow, RequestEnded, Submit, TokenFrame

SECRET = b"s" * 32
GATEWAY = 77
POLICY = Path(__file__).resolve().parents[1] / "policies" / "slai.yaml"
BLOCK_TOKENS, NUM_BLOCKS = 16, 64


class Ends(PacedEngine):
    """A paced engine that can be told to end its thread, and gives embeddings that name their sequence."""

    over = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.pooled: set[int] = set()
        self.sampling: list[list[int]] = []

    def launch(self, step: Step) -> None:
        self.pooled |= {start.sequence for start in step.starts if start.pooling}
        self.sampling.append(step.sequences[step.samples].tolist())
        super().launch(replace(step, starts=[replace(start, pooling="") for start in step.starts]))

    def collect(self) -> StepOutput:
        output = super().collect()
        sampled = self.sampling.pop(0)
        output.vectors = {each: np.array([each % 2**16, 0.5], np.float32) for each in sampled if each in self.pooled}
        return output

    def forget(self, sequences: list[int]) -> None:
        if self.over:
            raise EngineError("the test is over")
        super().forget(sequences)


class House:
    def __init__(self, folder: Path, gateway) -> None:
        self.policy = folder / "policy.yaml"
        self.policy.write_bytes(POLICY.read_bytes())
        self.deployment = Deployment(
            data=str(folder), policy=str(self.policy), record=str(folder / "record"), check=True
        ).resolved()
        Path(self.deployment.streams.secret_file).write_bytes(SECRET)
        self.gateway = gateway
        self.scheduler = SchedulerService(self.deployment)
        self.admission = AdmissionService(self.deployment)
        self.threads: list[tuple[Ends, threading.Thread]] = []
        self.links: dict[str, Link] = {}
        self.number = 0

    async def start(self) -> "House":
        await self.scheduler.start()
        await self.admission.start()
        self.add_executor()
        for service in ("admission", "scheduler"):
            address = getattr(self.deployment.streams, service)
            self.links[service] = Link(address, Identity("gateway", str(GATEWAY)), SECRET, self.gateway)
            self.links[service].start()
        await self.gateway.until(
            lambda: any(isinstance(each, Capacity) and each.num_executors for each in self.gateway.messages)
        )
        await self.gateway.message(PolicyNow)
        return self

    def add_executor(self, step_s: float = 0.001) -> Ends:
        settings = EngineSettings(
            kind="paced", paced_step_s=step_s, kv_block_tokens=BLOCK_TOKENS, kv_pool_tokens=BLOCK_TOKENS * NUM_BLOCKS
        )
        engine = Ends(settings, 1000, 4096)
        ready = ReadyFile(Path(self.deployment.run), "executor")

        def run() -> None:
            try:
                Executor(engine, self.deployment, ready).run()
            except EngineError:
                logging.getLogger(__name__).info("executor ends")

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self.threads.append((engine, thread))
        return engine

    async def stop(self) -> None:
        for link in self.links.values():
            await link.close()
        for engine, _ in self.threads:
            engine.over = True
        await self.admission.stop()
        await self.scheduler.stop()
        for _, thread in self.threads:
            await asyncio.to_thread(thread.join, 10)

    def submit(
        self,
        prompt: int | list[int] = 20,
        max_output_tokens: int = 8,
        num_choices: int = 1,
        **options: Any,
    ) -> int:
        """`prompt`: its token ids, or how many."""
        request = (GATEWAY << 32) + self.number
        self.number += num_choices
        self.links["admission"].stream.send(
            Submit(
                request=request,
                tenant="acme",
                tier="free",
                prompt=np.array(range(prompt) if isinstance(prompt, int) else prompt, np.int32).tobytes(),
                max_output_tokens=max_output_tokens,
                sampling=[Sampling(seed=request + choice) for choice in range(num_choices)],
                **options,
            )
        )
        return request

    async def ended(self, request: int) -> RequestEnded:
        found: list[RequestEnded] = []

        def look() -> bool:
            found[:] = [
                each for each in self.gateway.messages if isinstance(each, RequestEnded) and each.request == request
            ]
            return bool(found)

        await self.gateway.until(look)
        return found[0]

    @property
    def frames(self) -> list[TokenFrame]:
        return [message for message in self.gateway.messages if isinstance(message, TokenFrame)]

    def tokens(self) -> dict[int, list[int]]:
        by_sequence: dict[int, list[int]] = defaultdict(list)
        for frame in self.frames:
            pairs = zip(np.frombuffer(frame.sequences, np.int64), np.frombuffer(frame.tokens, np.int32), strict=True)
            for sequence, token in pairs:
                by_sequence[int(sequence)].append(int(token))
        return by_sequence


def expected(seed: int, prompt_tokens: int, count: int) -> list[int]:
    """What a paced engine samples, whatever the batches were."""
    engine = PacedEngine(EngineSettings(kind="paced"), 1000, 4096)
    positions = np.arange(prompt_tokens, prompt_tokens + count, dtype=np.int32)
    return engine._tokens(np.full(count, seed, np.int64), positions).tolist()


async def no_stop() -> None:
    """The test has stopped the house itself."""
