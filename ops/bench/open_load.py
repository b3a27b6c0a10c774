"""Requests that come whatever becomes of those before them, from a process of its own: `python -m ops.bench.open_load`.

Takes one order a line on stdin, a JSON object: {port, seed, vocabulary_size, phases: [{rate, seconds}], patience_s}.
Sends the requests of `paced_load` with exponential gaps, phase after phase, each on a connection of its own. Says when
it begins, on the monotonic clock, and at the end one line: a JSON list with an `Ending` for each, in their order.
"""

import asyncio
import json
import sys
import time
from typing import Any, NamedTuple, cast

import numpy as np
import uvloop

from ops.bench.paced_load import Ask, as_http, asks

DONE = b"data: [DONE]"
END = b"0\r\n\r\n"
TEXT = b'"text":'
FINISHED, REFUSED, BROKEN, UNANSWERED = "finished", "refused", "broken", "unanswered"


class Ending(NamedTuple):
    """What a client saw of its request; seconds since the first phase began."""

    phase: int
    tenant: str
    asked_at_s: float
    outcome: str
    code: str
    """Of a refusal, or the status of an answer that has none."""
    ttft_s: float | None
    longest_gap_s: float
    """Between two pieces of text."""
    ended_at_s: float
    retry_after: bool
    """A refusal said when to come again."""


class Client(asyncio.Protocol):
    """One request on a connection of its own."""

    def __init__(self, asked: bytes) -> None:
        self._asked = asked
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.asked_at_s = self.ended_at_s = self._loop.time()
        self.first_at_s: float | None = None
        self.last_at_s = 0.0
        self.longest_gap_s = 0.0
        self.head = b""
        self.tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._asked)

    def data_received(self, data: bytes) -> None:
        """A refusal, text, or the end."""
        now = self._loop.time()
        if len(self.head) < 4096:
            self.head += data
        if TEXT in data:
            if self.first_at_s is None:
                self.first_at_s = now
            else:
                self.longest_gap_s = max(self.longest_gap_s, now - self.last_at_s)
            self.last_at_s = now
        self.tail = (self.tail + data)[-256:]
        if self.tail.endswith(END) or (self.head[9:12] != b"200" and b"\r\n\r\n{" in self.head):
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio's signature
        """It is over."""
        self.ended_at_s = self._loop.time()
        if not self.ended.done():
            self.ended.set_result(None)

    def close(self) -> None:
        """Do not wait any longer."""
        if self._transport is not None:
            self._transport.close()

    def ending(self, phase: int, tenant: str, began_at_s: float) -> Ending:
        """What became of it."""
        status, code = self.head[9:12].decode(), ""
        if not self.head:
            outcome = UNANSWERED
        elif status == "200":
            outcome = FINISHED if DONE in self.tail else BROKEN
        else:
            outcome, code = REFUSED, status
            body = self.head.partition(b"\r\n\r\n")[2]
            if body.startswith(b"{"):
                code = json.loads(body)["error"]["code"]
        return Ending(
            phase,
            tenant,
            self.asked_at_s - began_at_s,
            outcome,
            code,
            None if self.first_at_s is None else self.first_at_s - self.asked_at_s,
            self.longest_gap_s,
            self.ended_at_s - began_at_s,
            b"retry-after" in self.head.lower(),
        )


async def send(order: dict[str, Any]) -> list[Ending]:
    """Carry out an order."""
    loop = asyncio.get_running_loop()
    generator = np.random.default_rng(order["seed"])
    due: list[tuple[float, int]] = []
    from_s = 0.0
    for phase, load in enumerate(order["phases"]):
        expected = int(load["rate"] * load["seconds"])
        gaps_s = generator.exponential(1 / load["rate"], 2 * expected + 100)
        times_s = from_s + np.cumsum(gaps_s)
        from_s += load["seconds"]
        due += [(at_s, phase) for at_s in times_s[times_s < from_s].tolist()]
    wanted = asks(len(due), vocabulary_size=order["vocabulary_size"], seed=order["seed"])
    bodies = [as_http(ask) for ask in wanted]
    clients: list[tuple[Client, int, Ask]] = []
    connecting: set[asyncio.Task[None]] = set()
    began_at_s = loop.time()
    print(time.monotonic(), flush=True)

    async def connect(client: Client) -> None:
        try:
            await loop.create_connection(lambda: client, "127.0.0.1", order["port"])
        except OSError:
            client.connection_lost(None)

    for (due_s, phase), ask, body in zip(due, wanted, bodies, strict=True):
        await asyncio.sleep(began_at_s + due_s - loop.time())
        client = Client(body)
        clients.append((client, phase, ask))
        task = loop.create_task(connect(client))
        connecting.add(task)
        task.add_done_callback(connecting.discard)
    await asyncio.wait([client.ended for client, _, _ in clients], timeout=order["patience_s"])
    for client, _, _ in clients:
        client.close()
    await asyncio.sleep(0)
    return [client.ending(phase, ask.tenant, began_at_s) for client, phase, ask in clients]


def main() -> None:
    """Entry point of the process."""
    for line in sys.stdin:
        print(json.dumps(uvloop.run(send(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
