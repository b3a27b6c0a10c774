"""How a service's metrics leave it: `/metrics` on a port of its own, and pushed to the collector if there is one.

Owns both; what is counted is the service's matter. Neither ever keeps the service from serving: a port that is taken
is a warning and tried again, and a collector that does not answer costs points, which are counted.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from services.settings import TelemetrySettings
from services.telemetry.exposition import render
from services.telemetry.metrics import Family
from services.telemetry.otlp_metrics import metrics_body
from services.telemetry.sending import METRICS, Sender, transport
from services.troubles import Troubles

PUSH_S = 10.0
RETRY_S = 1.0
LAST_PUSH_S = 2.0

Families = Callable[[], Awaitable[list[Family]]]

log = logging.getLogger(__name__)


class Reporting:
    """The way out of one service's metrics.

    Args:
        settings: where to.
        service: its name.
        instance: tells it from others of its kind.
        families: a snapshot, for `/metrics`.
        troubles: of the process, told with the rest.
        pushed: what of it is pushed; without it all of it.
    """

    def __init__(
        self,
        settings: TelemetrySettings,
        service: str,
        instance: str,
        families: Families,
        *,
        troubles: Troubles,
        pushed: Families | None = None,
    ) -> None:
        self._settings = settings
        self._service = service
        self._instance = instance
        self._families = families
        self._to_push = pushed or families
        self._troubles = troubles
        self._started_unix_ns = time.time_ns()
        self._runner: web.AppRunner | None = None
        self._sender: Sender | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.port = 0
        """Where `/metrics` is; 0: nowhere."""

    async def start(self) -> None:
        """Listen and begin to push."""
        if self._port is not None and (taken := await self._listen(self._port)):
            log.warning("no /metrics for now: %s; it is tried again; choose another with telemetry.metrics", taken)
            self._tasks.append(asyncio.get_running_loop().create_task(self._listen_later(self._port)))
        if self._settings.endpoint:
            self._sender = Sender(transport(self._settings.endpoint, self._settings.headers))
            self._tasks.append(asyncio.get_running_loop().create_task(self._push()))

    async def stop(self) -> None:
        """Push once more and close."""
        for task in self._tasks:
            task.cancel()
        if self._sender is not None:
            self._put([*await self._to_push(), self._troubles.family()])
            await self._sender.drain(LAST_PUSH_S)
            await self._sender.close()
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def _port(self) -> int | None:
        return self._settings.metrics.port_of(self._service)

    async def _listen_later(self, port: int) -> None:
        """A process that starts while the one before it drains finds the port taken, and free soon after."""
        while True:
            await asyncio.sleep(RETRY_S)
            if not await self._listen(port):
                log.info("/metrics is at port %d now", self.port)
                return

    async def _listen(self, port: int) -> str:
        """Returns what is in the way; empty: nothing."""
        app = web.Application()
        app.router.add_get("/metrics", self._serve)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        host = self._settings.metrics.host
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            await runner.cleanup()
            return f"{host}:{port} cannot be used: {error.strerror}"
        self._runner = runner
        self.port = int(runner.addresses[0][1])
        return ""

    async def _serve(self, request: web.Request) -> web.Response:
        families = [*await self._families(), self._troubles.family()]
        body, content_type = render(families, request.headers.get("accept", ""))
        return web.Response(body=body, headers={"content-type": content_type})

    async def _push(self) -> None:
        while True:
            await asyncio.sleep(PUSH_S)
            self._put([*await self._to_push(), self._troubles.family()])

    def _put(self, families: list[Family]) -> None:
        if self._sender is None:
            return
        body, num_points = metrics_body(
            families,
            self._service,
            self._instance,
            started_unix_ns=self._started_unix_ns,
            now_unix_ns=time.time_ns(),
        )
        self._sender.put(METRICS, body, num_points)
