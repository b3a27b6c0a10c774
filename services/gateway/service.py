"""One gateway process: the HTTP server, the links to admission and scheduler, the watch on the tenants file."""

import asyncio
import socket
from pathlib import Path

from aiohttp import web

from engine.interface import EngineError
from engine.tokenizer import Tokenizer
from services.errors import RequestError
from services.gateway.api import Api
from services.gateway.auth import Keys
from services.gateway.backend import Backend
from services.gateway.connection import watch
from services.gateway.door import Door
from services.gateway.draining import Draining
from services.gateway.grammars import Grammars
from services.gateway.metrics import GatewayMetrics
from services.gateway.rendering import Rendering
from services.gateway.tokenizer_check import check_tokenizer
from services.gateway.tracing import Tracing
from services.health import process_name, processes
from services.listening import BACKLOG, bind
from services.runtime import StartError, open_link, until_so
from services.settings import Deployment
from services.telemetry.keeper.settings import KeeperSettings
from services.telemetry.keeper_link import KeeperLink
from services.telemetry.reporting import Reporting
from services.traffic.rows import GATEWAY, REQUESTS, RequestRow
from services.traffic.store import Store, open_store
from services.transport import Identity, Link

CONNECT_S = 3.0
"""How long a gateway that starts beside others looks for the other services before it accepts all the same."""
CLOSE_S = 2.0
"""How long connections may take to close after the last answer."""


class GatewayService:
    """Serves HTTP until stopped."""

    def __init__(self, deployment: Deployment, replica: int = 0, listening: socket.socket | None = None) -> None:
        """Of several, the one with this number; `listening`: a socket that it shares with others, else its own."""
        self.name = process_name(GATEWAY, replica)
        self._deployment = deployment
        self._listening = listening
        try:
            self._tokenizer = tokenizer = Tokenizer.load(deployment.model_folder)
        except EngineError as error:
            raise StartError(str(error)) from error
        self._keys = Keys(Path(deployment.tenants))
        self._store: Store | None = None
        self.keeper = KeeperLink() if deployment.telemetry.tokens else None
        """Of traces; None: nothing is traced."""
        tracing = Tracing(deployment.model_name, self.keeper)
        self._backend = Backend(tokenizer, self._record, tracing, deployment.streams.resume_s)
        self._grammars = Grammars(deployment.model_folder, tokenizer.vocabulary_size)
        self._rendering = Rendering(deployment.model_folder, deployment.http.max_prompt_characters)
        self.api = Api(
            deployment.http,
            deployment.model_name,
            tokenizer=tokenizer,
            grammars=self._grammars,
            rendering=self._rendering,
            keys=self._keys,
            backend=self._backend,
            keeper=self.keeper,
        )
        metrics = GatewayMetrics(self._backend, self._keys, self.keeper)
        instance = str(self._backend.gateway)
        self._reporting = Reporting(
            deployment.telemetry,
            self.name,
            instance,
            metrics.families,
            troubles=self._backend.troubles,
            pushed=metrics.own,
        )
        self.links: list[Link] = []
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._watches: list[asyncio.Task[None]] = []
        """Of the tenants file and of connections."""
        self._draining = Draining()
        self.port = 0
        """The port listened on, once started."""

    async def start(self) -> None:
        """Read the keys, connect to the other services, listen.

        Raises:
            StartError: the keys cannot be read, or the port is in use.
        """
        self._keys.load()
        try:
            await check_tokenizer(self._deployment.model_folder, self._tokenizer)
            await self._rendering.start()
        except EngineError as error:
            raise StartError(str(error)) from error
        await self._reporting.start()
        if self.keeper is not None:
            telemetry = self._deployment.telemetry
            instance = str(self._backend.gateway)
            await self.keeper.start(
                KeeperSettings(
                    GATEWAY,
                    instance,
                    "scheduler",
                    recent_tokens=telemetry.recent.tokens,
                    recent_steps=telemetry.recent.steps,
                    endpoint=telemetry.endpoint,
                    headers=telemetry.headers,
                    name=self.name,
                    gateways=[name for name, (service, _) in processes(self._deployment).items() if service == GATEWAY],
                    run=self._deployment.run,
                )
            )
        self._store = open_store(
            self._deployment.data, GATEWAY, (REQUESTS,), self._deployment.traffic, self._backend.troubles
        )
        loop = asyncio.get_running_loop()
        self._watches.append(loop.create_task(self._keys.watch()))
        streams = self._deployment.streams
        identity = Identity(GATEWAY, str(self._backend.gateway))
        self.links = [
            open_link(self._deployment, address, identity, self._backend)
            for address in (*streams.admissions, streams.scheduler)
        ]
        self.api.live.start()
        # Handlers are cancelled when their client goes: that is how its request ends at once.
        application = self.api.application()
        application.on_response_prepare.append(self._draining.say_goodbye)
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=CLOSE_S)
        self._runner = runner
        await runner.setup()
        if self._listening is not None:
            # Others accept from this socket too, or it keeps who comes: nobody has to meet a gateway that is not ready.
            await until_so(lambda: not self.api.missing(), CONNECT_S)
        listening = self._listening or self._listen()
        self.port = int(listening.getsockname()[1])
        http, server = self._deployment.http, runner.server
        assert server is not None  # noqa: S101  set up above
        self._watches.append(loop.create_task(watch(server, http.look_s)))
        self._server = await loop.create_server(Door(server, http, loop), sock=listening, backlog=BACKLOG)

    def not_ready(self) -> str:
        """What keeps new requests from being served."""
        return "; ".join(self.api.missing())

    async def drain(self) -> None:
        """Accept nobody, let what runs end within `http.drain_s`."""
        self.api.intake.draining = True
        self.api.live.close()
        server = None if self._runner is None else self._runner.server
        await self._draining.run(self._server, server, self._deployment.http.drain_s, self._cut_short)

    def _cut_short(self) -> None:
        limit_s = self._deployment.http.drain_s
        message = f"the gateway is shutting down and the request took longer than {limit_s:g} s more"
        self._backend.cancel_all(RequestError("draining", message))

    async def stop(self) -> None:
        """Close connections, links and the watch."""
        for task in self._watches:
            task.cancel()
        self.api.live.close()
        if self._server is not None:
            self._server.close()
        if self._runner is not None:
            await self._runner.shutdown()
            await self._runner.cleanup()
        await self._grammars.close()
        await self._rendering.close()
        # What takes its time takes it together, and the thread of the store, which holds everything up, comes last:
        # one after the other they would need longer than there is (`runtime.STOP_S`).
        closing = [self._reporting.stop(), *(link.close() for link in self.links)]
        if self.keeper is not None:
            closing.append(self.keeper.close())
        await asyncio.gather(*closing)
        self._backend.close()
        if self._store is not None:
            self._store.close()

    def _record(self, row: RequestRow) -> None:
        if self._store is not None:
            self._store.add(REQUESTS, row)

    def _listen(self) -> socket.socket:
        http = self._deployment.http
        try:
            return bind(http)
        except OSError as error:
            raise StartError(f"http: {http.host}:{http.port} cannot be used: {error.strerror}") from error


def build(deployment: Deployment, replica: int = 0, listening: socket.socket | None = None) -> GatewayService:
    """The service of this (resolved) deployment; of several, the one with this number.

    Raises:
        StartError: the model's tokenizer cannot be read.
    """
    return GatewayService(deployment, replica, listening)
