"""How a gateway leaves without failing a request: it accepts nobody, answers whoever is connected, and says goodbye.

Owns the order of that. A client that holds a connection open may be sending on it just now: it is answered, told that
the connection closes, and comes back by another one. Knows no requests, only that some run.
"""

import asyncio
from collections.abc import Callable

from aiohttp import web

LINGER_S = 1.0
"""How long a connection on which nothing happens stays open: what its client has sent by then still arrives."""
LOOK_S = 0.01


class Draining:
    """The end of one gateway's service.

    Attributes:
        begun: whether it is over with new connections.
    """

    def __init__(self) -> None:
        self.begun = False

    async def say_goodbye(self, request: web.Request, response: web.StreamResponse) -> None:
        """Called by aiohttp before an answer's head is written."""
        del request
        if self.begun:
            response.force_close()
            response.headers["connection"] = "close"

    async def run(
        self,
        accepting: asyncio.AbstractServer | None,
        server: web.Server | None,
        limit_s: float,
        cut_short: Callable[[], None],
    ) -> None:
        """Until nobody is connected; `cut_short` ends the requests that still run after `limit_s`."""
        self.begun = True
        if accepting is not None:
            accepting.close()
        if server is None:
            return
        lingered = await _gone(server, min(LINGER_S, limit_s))
        server.pre_shutdown()  # closes those that wait for a request, the others after their answer
        if not lingered and not await _gone(server, limit_s - min(LINGER_S, limit_s)):
            cut_short()
            # The handlers of the last answers write their ends; a reader who takes nothing is not waited for.
            await _gone(server, LINGER_S)


async def _gone(server: web.Server, limit_s: float) -> bool:
    """Whether everybody is, within so many seconds."""
    try:
        async with asyncio.timeout(limit_s):
            while server.connections:  # noqa: ASYNC110  aiohttp does not say when the last one has gone
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        return False
    return True
