"""Clients that nobody wants, in a process of their own: `python -m ops.bench.bad_crowd`.

Takes one order on stdin, a JSON object: {port, key, counts: {kind: how many}, comes_again}. Says `ready` when all have
been there, and ends with its stdin. Whoever was cut off or has vanished comes again, or not.

- silent: connects and sends nothing.
- half_head: sends half a request's head, and nothing more.
- half_body: sends a head and half of the body it announces.
- slow: asks for a long stream and reads one byte of it a second, through a small window.
- vanishing: resets its connection in the middle of a stream.
"""

import asyncio
import contextlib
import json
import random
import socket
import struct
import sys
from typing import Any

import uvloop

from ops.bench.readers import request

KINDS = ("silent", "half_head", "half_body", "slow", "vanishing")
RECEIVE_BUFFER_BYTES = 4096
READ_PAUSE_S = 1.0
NUM_SLOW_TOKENS = 4_000
NUM_VANISHING_TOKENS = 500
VANISHES_AFTER_S = (0.2, 2.0)
AGAIN_S = (0.1, 1.0)
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends a reset, not an end."""


class Crowd:
    """All of them.

    Args:
        order: as above.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self._port: int = order["port"]
        self._key: str = order["key"]
        self._comes_again: bool = order["comes_again"]
        self._kinds = [kind for kind, count in order["counts"].items() for _ in range(count)]
        self._draw = random.Random(7)
        self._missing = len(self._kinds)
        self._there = asyncio.Event()

    async def run(self) -> None:
        """Until stdin ends."""
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._member(kind)) for kind in self._kinds]
        await self._there.wait()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _member(self, kind: str) -> None:
        is_first = True
        while is_first or self._comes_again:
            with socket.socket() as bare, contextlib.suppress(OSError):
                bare.setblocking(False)
                await self._behave(kind, bare, is_first=is_first)
            is_first = False
            await asyncio.sleep(self._draw.uniform(*AGAIN_S))

    async def _behave(self, kind: str, bare: socket.socket, *, is_first: bool) -> None:
        loop = asyncio.get_running_loop()
        if kind == "slow":
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        try:
            await loop.sock_connect(bare, ("127.0.0.1", self._port))
            await loop.sock_sendall(bare, self._said(kind))
        finally:
            if is_first:
                self._arrived()
        match kind:
            case "slow":
                while await loop.sock_recv(bare, 1):  # noqa: ASYNC110  the pause is what makes it slow
                    await asyncio.sleep(READ_PAUSE_S)
            case "vanishing":
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._draw.uniform(*VANISHES_AFTER_S)):
                        while await loop.sock_recv(bare, 2**16):
                            pass
                bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            case _:
                while await loop.sock_recv(bare, 2**16):
                    pass

    def _said(self, kind: str) -> bytes:
        match kind:
            case "silent":
                return b""
            case "half_head":
                return request(self._key)[:60]
            case "half_body":
                return request(self._key)[:-20]
            case "slow":
                return request(self._key, max_tokens=NUM_SLOW_TOKENS, ignore_eos=True)
            case _:
                return request(self._key, max_tokens=NUM_VANISHING_TOKENS, ignore_eos=True)

    def _arrived(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._there.set()


def main() -> None:
    """Entry point of the process."""
    uvloop.run(Crowd(json.loads(sys.stdin.readline())).run())


if __name__ == "__main__":
    main()
