"""What an executor counts, and the thread that answers for it: the executor itself waits for its device."""

import asyncio
import threading

from services.settings import TelemetrySettings
from services.telemetry import names
from services.telemetry.metrics import Family, Registry
from services.telemetry.reporting import Reporting
from services.troubles import Troubles

NS = 1e9
END_S = 5.0


class ExecutorMetrics:
    """One executor's. `step_ended` is called by the executor's thread, all else happens in one of its own."""

    def __init__(self) -> None:
        registry = self._registry = Registry()
        self._compute = registry.histogram(names.EXECUTOR_STEPS)
        self._idle = registry.histogram(names.EXECUTOR_GAP)
        self._ended_ns = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._thread: threading.Thread | None = None

    def step_ended(self, launched_ns: int, computed_ns: int) -> None:
        """A step's result is there."""
        self._compute.observe((computed_ns - max(launched_ns, self._ended_ns)) / NS)
        if self._ended_ns:
            self._idle.observe(max(0, launched_ns - self._ended_ns) / NS)
        self._ended_ns = computed_ns

    def start(self, settings: TelemetrySettings, instance: str) -> None:
        """Begin to answer."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(settings, instance)), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Push what is left and end."""
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(END_S)

    async def _run(self, settings: TelemetrySettings, instance: str) -> None:
        self._loop = asyncio.get_running_loop()
        reporting = Reporting(settings, "executor", instance, self._families, troubles=Troubles())
        await reporting.start()
        await self._stop.wait()
        await reporting.stop()

    async def _families(self) -> list[Family]:
        return self._registry.families()
