"""The console and what it asks for: a page, a stream of the last minutes, recent requests and the story of one.

Owns who may see what: an operator everything, a tenant its own requests.
"""

import msgspec
from aiohttp import web

from services.errors import RequestError
from services.gateway.console_files import ConsoleFiles
from services.gateway.intake import ADMIN, Intake
from services.gateway.live import Live
from services.gateway.replies import JSON, Replies
from services.telemetry.keeper_link import KeeperError, KeeperLink
from services.telemetry.records import Asked

YES = ("1", "true", "yes")
NO = ("", "0", "false", "no")


class _Told(msgspec.Struct):
    """What the keepers know of one request."""

    story: msgspec.Raw
    """JSON."""
    silent: dict[str, str]
    """Gateways of which nothing is known, and why."""


class Console:
    """Handlers over one gateway's live figures and its keeper."""

    def __init__(self, intake: Intake, replies: Replies, live: Live, keeper: KeeperLink | None) -> None:
        self._intake = intake
        self._replies = replies
        self._live = live
        self._keeper = keeper
        self._files = ConsoleFiles()

    def routes(self) -> list[web.RouteDef]:
        """Where they are."""
        return [
            web.get("/console", self._files.page),
            web.get("/console/{name}", self._files.file),
            web.get("/v1/fairlead/live", self._stream),
            web.get("/v1/fairlead/requests", self._recent),
            web.get("/v1/fairlead/requests/{id}", self._one),
        ]

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events until either side goes."""
        self._intake.admin(request)
        response = web.StreamResponse(headers=self._replies.headers(request))
        response.content_type = "text/event-stream"
        response.headers["cache-control"] = "no-cache"
        response.headers["x-accel-buffering"] = "no"
        await response.prepare(request)
        async for event, document in self._live.follow():
            try:
                self._intake.admin(request)
            except RequestError:
                break  # the key was revoked: the page asks again, and is told
            await response.write(b"event: %b\ndata: %b\n\n" % (event.encode(), document))
        return response

    async def _recent(self, request: web.Request) -> web.StreamResponse:
        """The last requests that ended, the newest first."""
        tenant, key = self._intake.anyone(request)
        given = request.query.get("missed", "").lower()
        if given not in (*YES, *NO):
            raise RequestError("invalid_value", f"missed: {given!r} is neither true nor false", param="missed")
        wanted = request.query.get("tenant", "") if key.scope == ADMIN else tenant.name
        asked = Asked(0, "recent", tenant=wanted, slo_class=request.query.get("class", ""), missed=given in YES)
        body = await self._ask(asked)
        return web.Response(body=body, content_type=JSON, headers=self._replies.headers(request))

    async def _one(self, request: web.Request) -> web.StreamResponse:
        """All that is known of one."""
        tenant, key = self._intake.anyone(request)
        name = request.match_info["id"]
        body = await self._ask(Asked(0, "request", name, tenant="" if key.scope == ADMIN else tenant.name))
        told = msgspec.json.decode(body, type=_Told)
        if bytes(told.story) == b"null":
            silent = "".join(f"; {gateway} {why}, and may know it" for gateway, why in told.silent.items())
            message = f"no request {name!r} is remembered: it has not ended yet, or was too long ago{silent}"
            raise RequestError("not_found", message)
        return web.Response(body=bytes(told.story), content_type=JSON, headers=self._replies.headers(request))

    async def _ask(self, asked: Asked) -> bytes:
        if self._keeper is None:
            raise RequestError("not_found", "requests are not traced here: set telemetry.tokens in deployment.yaml")
        try:
            return await self._keeper.put(asked)
        except KeeperError as error:
            raise RequestError("no_capacity", str(error)) from error
