"""The console's page: files that come with the package, read once, and the library that draws its charts."""

import asyncio
import gzip
import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from aiohttp import web

from services.gateway.replies import SERVER

FOLDER = Path(__file__).with_name("console")
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
PAGE, CHARTS = "index.html", "plotly.min.js"
POLICY = (
    # plotly.js writes its style sheet into the page; there is no inline script anywhere.
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "server": SERVER,
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
    "vary": "accept-encoding",
}


class File(NamedTuple):
    """Ready to be sent."""

    content_type: str
    body: bytes
    gzipped: bytes
    tag: str
    """Entity tag: the browser asks with it whether its copy is the newest."""


class ConsoleFiles:
    """Read when they are asked for the first time."""

    def __init__(self) -> None:
        self._files: dict[str, File] = {}
        self._reading = asyncio.Lock()

    async def page(self, request: web.Request) -> web.StreamResponse:
        """The page itself; what it shows needs a key, it does not."""
        return await self._send(request, PAGE)

    async def file(self, request: web.Request) -> web.StreamResponse:
        """Something that it loads."""
        return await self._send(request, request.match_info["name"])

    async def _send(self, request: web.Request, name: str) -> web.StreamResponse:
        async with self._reading:
            file = self._files.get(name)
            if file is None:
                path = _path_of(name)
                if path is None:
                    raise web.HTTPNotFound
                file = self._files[name] = await asyncio.to_thread(_read, path)
        headers = {**HEADERS, "etag": file.tag}
        if request.headers.get("if-none-match") == file.tag:
            return web.Response(status=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
            return web.Response(body=file.gzipped, content_type=file.content_type, charset="utf-8", headers=headers)
        return web.Response(body=file.body, content_type=file.content_type, charset="utf-8", headers=headers)


def _path_of(name: str) -> Path | None:
    """Where a file is; None: there is none of this name."""
    if name == CHARTS:
        # Found without being imported: of the package only this file is wanted here.
        found = find_spec("plotly")
        return None if found is None or found.origin is None else Path(found.origin).parent / "package_data" / CHARTS
    known = {path.name: path for path in FOLDER.iterdir() if path.suffix in TYPES}
    return known.get(name)


def _read(path: Path) -> File:
    body = path.read_bytes()
    digest = hashlib.sha256(body).hexdigest()[:32]
    return File(TYPES[path.suffix], body, gzip.compress(body, 6), f'"{digest}"')
