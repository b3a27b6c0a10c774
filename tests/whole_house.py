"""All four services in one process over a small random model; each can be lost and replaced."""

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from engine.interface import Engine, EngineError, EngineSettings, Step
from engine.load import load_engine
from policies.document.tenants import digest
from services.admission.service import AdmissionService
from services.executor.service import Executor
from services.gateway.service import GatewayService
from services.runtime import ReadyFile
from services.scheduler.service import SchedulerService
from services.settings import Deployment, HttpSettings, TelemetrySettings
from services.stream_settings import StreamSettings
from services.usage_rows import FILE, read_usage

SECRET = b"the secret of a test deployment"
KEY = "fl-test-key"
POLICY = Path(__file__).resolve().parents[1] / "policies" / "slai.yaml"
TENANTS = f"""
version: 1
tenants:
  - name: acme
    tier: paid
    keys:
      - {{id: one, sha256: {digest(KEY)}}}
"""
WAIT_S = 60.0
"""Only reached when something is broken."""


class Gate:
    """An engine that stands still after so many more steps, until it is let on."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._left = 0
        self._open = threading.Event()
        self._open.set()
        self.is_waiting = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def launch(self, step: Step) -> None:
        if not self._left:
            self.is_waiting = not self._open.is_set()
            self._open.wait()
            self.is_waiting = False
        self._left -= 1
        self._engine.launch(step)

    def stop_after(self, num_steps: int) -> None:
        self._left = num_steps
        waiting, self._open = self._open, threading.Event()
        waiting.set()

    def let_on(self) -> None:
        self._left = 0
        self._open.set()


class WholeHouse:
    """A client's view of the four, and the means to lose one of them."""

    def __init__(self, folder: Path, checkpoint: Path, **streams: Any) -> None:
        (folder / "tenants.yaml").write_text(TENANTS)
        (folder / "streams.secret").write_bytes(SECRET)
        (folder / "policy.yaml").write_bytes(POLICY.read_bytes())
        self.deployment = Deployment(
            model=str(checkpoint),
            policy=str(folder / "policy.yaml"),
            data=str(folder),
            record=str(folder / "record"),
            check=True,
            http=HttpSettings(port=0),
            streams=StreamSettings(**streams),
            engine=EngineSettings(device="cpu", threads=1, kv_block_tokens=16, kv_pool_tokens=16 * 256),
            telemetry=TelemetrySettings(tokens=False),
        ).resolved()
        self.scheduler = SchedulerService(self.deployment)
        self.admission = AdmissionService(self.deployment)
        self.gateway = GatewayService(self.deployment)
        self._executors: list[tuple[Executor, threading.Thread]] = []
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> "WholeHouse":
        await self.scheduler.start()
        await self.admission.start()
        self.gate = Gate(load_engine(self.deployment.model_folder, self.deployment.engine))
        self._execute(self.gate)
        await self.gateway.start()
        self._session = aiohttp.ClientSession(
            f"http://127.0.0.1:{self.gateway.port}", headers={"authorization": f"Bearer {KEY}"}
        )
        await self.until(lambda: not self.gateway.not_ready())
        return self

    def _execute(self, engine: Any) -> None:
        executor = Executor(engine, self.deployment, ReadyFile(Path(self.deployment.run), "executor"))

        def run() -> None:
            try:
                executor.run()
            except EngineError:
                logging.getLogger(__name__).info("executor ends")

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._executors.append((executor, thread))

    def lose_executor(self) -> None:
        """It comes again with an empty pool."""
        for executor in list(self.scheduler._fleet.executors.values()):
            executor.stream.close()

    async def lose_scheduler(self) -> None:
        await self.scheduler.stop()

    async def replace_scheduler(self) -> None:
        await self.scheduler.stop()
        self.scheduler = SchedulerService(self.deployment)
        await self.scheduler.start()

    async def replace_admission(self) -> None:
        await self.admission.stop()
        self.admission = AdmissionService(self.deployment)
        await self.admission.start()

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()
        await self.gateway.stop()
        self.gate.let_on()
        for executor, _ in self._executors:
            executor._connect = _over  # type: ignore[method-assign]
        await self.admission.stop()
        await self.scheduler.stop()
        for _, thread in self._executors:
            await asyncio.to_thread(thread.join, 10)

    def usage(self) -> dict[str, int]:
        """What was charged, once the house has stopped."""
        (row,) = read_usage(Path(self.deployment.data) / FILE, "acme", 2)
        return dict(row.counts)

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():  # noqa: ASYNC110  nobody is told of it
                await asyncio.sleep(0.001)

    async def quiet(self) -> None:
        """Every request has ended, everywhere."""
        await self.until(
            lambda: (
                not (
                    self.gateway._backend.running
                    or self.admission._core.ledger.in_flight
                    or self.admission._waiting
                    or self.scheduler._sequences.by_id
                )
            )
        )
        self.admission._core.check()
        self.scheduler._core.check()

    async def computed(self, num_steps: int) -> None:
        """So many more steps, and their tokens are with the gateway."""
        self.gate.stop_after(num_steps)
        await self.until(lambda: self.gate.is_waiting)
        await asyncio.sleep(0.01)

    async def post(self, path: str, **body: Any) -> tuple[int, Any]:
        """Status, and the document; of a stream the documents of its events."""
        assert self._session is not None
        async with self._session.post(path, json={"model": self.deployment.model_name, **body}) as answer:
            text = await answer.text()
            if answer.content_type != "text/event-stream":
                return answer.status, msgspec.json.decode(text)
            data = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: {")]
            return answer.status, [msgspec.json.decode(each) for each in data]


def _over() -> None:
    raise EngineError("the test is over")
