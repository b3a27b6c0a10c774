"""A gateway's way to its keeper: starts the process, writes records without ever waiting, asks questions.

A keeper that is behind or gone costs records, which are counted; serving goes on. One that has ended is started again.
"""

import asyncio
import logging
import socket
import subprocess
import sys
from contextlib import suppress

import msgspec

from services.crashes import Crashes
from services.telemetry.keeper.settings import KeeperSettings
from services.telemetry.records import Answered, Asked, Ended, PolicyInForce, Reader, Record, encode

MAX_UNREAD_BYTES = 16 * 2**20
MAX_UNREAD_ENDS_BYTES = 2 * MAX_UNREAD_BYTES
"""Of ends, which are small: without its end a keeper that was behind would hold a request for ever."""
ANSWER_S = 5.0
FLUSH_S = 0.05
"""Records wait for one another so long at most."""
END_S = 8.0
MOST_CRASHES, CRASHES_S = 5, 60.0

log = logging.getLogger(__name__)


class KeeperError(Exception):
    """The keeper gave no answer; the sentence says why."""


class KeeperLink(asyncio.Protocol):
    """One keeper process and the socket to it."""

    def __init__(self) -> None:
        self.num_dropped = 0
        """Records that did not get through."""
        self._settings: KeeperSettings | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._crashes = Crashes(MOST_CRASHES, CRASHES_S)
        self._starting: asyncio.Task[None] | None = None
        """Of the next process, after one that ended."""
        self._in_force: PolicyInForce | None = None
        """The newest, which the next process is told first."""
        self._transport: asyncio.WriteTransport | None = None
        self._reader = Reader()
        self._unsent: list[bytes] = []
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._num_asked = 0

    async def start(self, settings: KeeperSettings) -> None:
        """Start the process and connect to it."""
        self._settings = settings
        ours, theirs = socket.socketpair()
        with theirs:
            given = msgspec.structs.replace(settings, descriptor=theirs.fileno())
            self._process = subprocess.Popen(  # noqa: ASYNC220  who is being served waits a millisecond
                [sys.executable, "-m", "services.telemetry.keeper"],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
            )
            # Not as an argument, which everybody on the machine can read: the collector's headers may hold a key.
            assert self._process.stdin is not None  # noqa: S101  it was started with a pipe
            # The pipe is written to when it is closed: that, too, may find that the process has ended.
            with suppress(BrokenPipeError), self._process.stdin as stdin:
                stdin.write(msgspec.json.encode(given))
        ours.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)

    def record(self, record: Record) -> None:
        """Tell it something, or count it as dropped."""
        if type(record) is PolicyInForce:
            self._in_force = record
        transport = self._transport
        most_bytes = MAX_UNREAD_ENDS_BYTES if type(record) is Ended else MAX_UNREAD_BYTES
        if transport is None or transport.get_write_buffer_size() > most_bytes:
            self.num_dropped += 1
            return
        if not self._unsent:
            # One write for many: a system call, and waking the keeper for it, cost more than a record.
            asyncio.get_running_loop().call_later(FLUSH_S, self._flush)
        self._unsent.append(encode(record))

    async def ask(self, about: str, request: str = "") -> bytes:
        """Its answer, as `put`."""
        return await self.put(Asked(0, about, request))

    async def put(self, question: Asked) -> bytes:
        """The answer to a question, which gets its number here.

        Raises:
            KeeperError: there is none in time.
        """
        if self._transport is None:
            raise KeeperError("the keeper of traces is not there; its log line says why")
        self._num_asked += 1
        number = self._num_asked
        future = self._asked[number] = asyncio.get_running_loop().create_future()
        self.record(msgspec.structs.replace(question, number=number, num_unread=self.num_dropped))
        self._flush()
        try:
            return await asyncio.wait_for(future, ANSWER_S)
        except TimeoutError:
            raise KeeperError(f"the keeper of traces gave no answer within {ANSWER_S:g} s") from None
        finally:
            del self._asked[number]

    async def close(self) -> None:
        """Let it finish what it has, then end it."""
        self._settings = None
        if self._starting is not None:
            self._starting.cancel()
        if self._transport is not None:
            self._flush()
            self._transport.close()
        if self._process is not None:
            try:
                await asyncio.to_thread(self._process.wait, END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                await asyncio.to_thread(self._process.wait)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self._transport is None:
            self.num_dropped += len(unsent)
        elif unsent:
            self._transport.write(b"".join(unsent))

    # --- asyncio.Protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is ready."""
        self._transport = transport  # type: ignore[assignment]  # of a socket: it can be written to
        self._reader = Reader()
        if self._in_force is not None:
            self.record(self._in_force)

    def data_received(self, data: bytes) -> None:
        """An answer, or a part of one."""
        for record in self._reader.feed(data):
            if not isinstance(record, Answered):
                continue
            future = self._asked.get(record.number)
            if future is not None and not future.done():
                future.set_result(record.document)

    def connection_lost(self, error: Exception | None) -> None:
        """The keeper ended, or we did."""
        self._transport = None
        for future in self._asked.values():
            if not future.done():
                future.set_exception(KeeperError("the keeper of traces ended"))
        if self._settings is not None:
            self._go_on(self._settings, f"ended ({error or 'it closed its socket'})")

    # --- the next process ------------------------------------------------------------------------------------------

    def _go_on(self, settings: KeeperSettings, what: str) -> None:
        loop = asyncio.get_running_loop()
        pause_s = self._crashes.pause_s(loop.time())
        if pause_s is None:
            log.error("the keeper of traces %s once too often: nothing is traced until a restart", what)
        else:
            log.warning("the keeper of traces %s: what it knew is lost, and another one starts", what)
            self._starting = loop.create_task(self._start_again(settings, pause_s))

    async def _start_again(self, settings: KeeperSettings, pause_s: float) -> None:
        if self._process is not None:
            self._process.kill()  # it may have closed the socket alone
            await asyncio.to_thread(self._process.wait)
        await asyncio.sleep(pause_s)
        try:
            await self.start(settings)
        except OSError as error:
            self._go_on(settings, f"could not be started ({error})")
