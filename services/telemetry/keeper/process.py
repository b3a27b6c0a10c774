"""The keeper's process: records from its gateway on one socket, a batch a second, spans and metrics to the
collector if there is one, answers to its gateway for all gateways. Ends when its gateway does, after a last batch.
"""

import asyncio
import logging
import os
import socket
import time

import msgspec

from engine.malloc import keep_freed_memory
from services.telemetry.keeper.answers import ALONE, Heard, Now, own, together
from services.telemetry.keeper.keeper import Keeper
from services.telemetry.keeper.settings import KeeperSettings
from services.telemetry.keeper.siblings import Siblings
from services.telemetry.keeper.spans import Spans, in_groups, trace_messages
from services.telemetry.otlp_metrics import metrics_body
from services.telemetry.records import Answered, Asked, Reader, encode
from services.telemetry.sending import METRICS, TRACES, Sender, transport

BATCH_S = 1.0
METRICS_S = 10.0
LAST_WORDS_S = 5.0
READ_BYTES = 2**20

log = logging.getLogger(__name__)


class KeeperProcess:
    """Reads, batches, sends."""

    def __init__(self, settings: KeeperSettings) -> None:
        self._settings = settings
        self._keeper = Keeper(time.time, settings)
        self._started_unix_ns = time.time_ns()
        # Both clocks of one host; the wall clock may be set, so it is looked at with every batch.
        self._ahead_ns = 0
        self._spans = Spans(settings.instance, lambda stamp_ns: stamp_ns + self._ahead_ns, self._keeper.steps)
        self._sender: Sender | None = None
        self._next_metrics = time.monotonic() + METRICS_S
        self._writer: asyncio.StreamWriter | None = None
        self._siblings = Siblings(settings, self._own)
        self._asking: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the gateway's end of the socket is closed."""
        if self._settings.endpoint:
            self._sender = Sender(transport(self._settings.endpoint, self._settings.headers))
        connection = socket.socket(fileno=self._settings.descriptor)
        reader, self._writer = await asyncio.open_unix_connection(sock=connection, limit=READ_BYTES)
        await self._siblings.open()
        ticking = asyncio.get_running_loop().create_task(self._tick())
        records = Reader()
        while data := await reader.read(READ_BYTES):
            for record in records.feed(data):
                if isinstance(record, Asked):
                    self._asked(record)
                else:
                    self._keeper.take(record)
        self._siblings.close()
        ticking.cancel()
        self._batch()
        self._send_metrics()
        if self._sender is not None:
            await self._sender.drain(LAST_WORDS_S)
            await self._sender.close()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(BATCH_S)
            self._batch()
            if time.monotonic() >= self._next_metrics:
                self._next_metrics += METRICS_S
                self._send_metrics()

    def _batch(self) -> None:
        self._ahead_ns = time.time_ns() - time.monotonic_ns()
        finished = self._keeper.batch()
        if finished and self._sender is not None:
            for some in in_groups(finished):
                for body, num_spans in trace_messages(self._spans.resource_spans(some)):
                    self._sender.put(TRACES, body, num_spans)
        self._keeper.count_dropped({} if self._sender is None else self._sender.dropped)

    def _send_metrics(self) -> None:
        if self._sender is None:
            return
        body, num_points = metrics_body(
            self._keeper.registry.families(),
            self._settings.service,
            self._settings.instance,
            started_unix_ns=self._started_unix_ns,
            now_unix_ns=time.time_ns(),
        )
        self._sender.put(METRICS, body, num_points)

    def _own(self, asked: Asked) -> bytes:
        if asked.about != "live":  # asked every second, of the seconds before
            self._batch()
        return own(self._keeper, asked, Now(time.monotonic_ns(), time.time()))

    def _asked(self, asked: Asked) -> None:
        """Answer the gateway, at once where no other keeper has to be asked for it."""
        self._keeper.num_unread = asked.num_unread
        mine = self._own(asked)
        if asked.about == "recent" or (asked.about == "request" and asked.request not in self._keeper.recent):
            asking = asyncio.get_running_loop().create_task(self._ask_others(asked, mine))
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)
        else:
            self._answer(asked, mine, self._siblings.lately if asked.about == "live" else ALONE)

    async def _ask_others(self, asked: Asked, mine: bytes) -> None:
        self._answer(asked, mine, await self._siblings.ask(asked))

    def _answer(self, asked: Asked, mine: bytes, heard: Heard) -> None:
        if self._writer is not None:
            self._writer.write(encode(Answered(asked.number, together(asked, mine, heard))))


def main(given: bytes) -> int:
    """Run; `given` is `KeeperSettings` as JSON."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s keeper %(levelname)s %(message)s")
    settings = msgspec.json.decode(given, type=KeeperSettings)
    # Serving comes first: on a full machine the keeper waits.
    os.nice(5)
    # The arrays of each batch are as large as those of the one before.
    keep_freed_memory()
    asyncio.run(KeeperProcess(settings).run())
    return 0
