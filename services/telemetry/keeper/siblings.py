"""The keepers of one machine's gateways ask one another, so that whichever gateway is asked can answer for all.

Owns this keeper's socket in the run folder, on which others ask, and what is known of theirs. A keeper that does not
answer is named, and never waited for long. Knows no answer's meaning.
"""

import asyncio
import contextlib
import logging
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from services.telemetry.keeper.answers import Heard
from services.telemetry.keeper.settings import KeeperSettings
from services.telemetry.records import LENGTH, Answered, Asked, Reader, encode

LOOK_S = 1.0
ANSWER_S = 2.0
QUESTION_S = 5.0
"""How long whoever connects may take to ask, and to read the answer."""
READ_BYTES = 2**16
LONGEST_QUESTION_BYTES = 2**16
NAMED = re.compile(r"(?P<gateway>gateway(-\d+)?)\.(?P<instance>\d+)")
"""Socket of a gateway's keeper: the name of the process, and which start of it."""
ABSENT = "is not there"
MUTE = "gives no answer"

Answer = Callable[[Asked], bytes]

log = logging.getLogger(__name__)


class Siblings:
    """All keepers of the run folder but this one.

    Args:
        settings: whose keeper this is, and who there should be.
        answer: what this one knows.
    """

    def __init__(self, settings: KeeperSettings, answer: Answer) -> None:
        self._settings = settings
        self._answer = answer
        self._folder = Path(settings.run)
        self._path = self._folder / f"{settings.name}.{settings.instance}"
        self._server: asyncio.Server | None = None
        self._looking: asyncio.Task[None] | None = None
        self.lately = Heard([], {})
        """Of how it goes: what they said last, at most a few seconds ago."""

    async def open(self) -> None:
        """Answer others, and look at them from now on."""
        if not self._settings.run:
            return
        # Given its name once it listens: a name that nobody listens behind is that of a dead one.
        beside = self._folder / f".{self._settings.instance}"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            listening = _bind(beside)
            self._server = await asyncio.start_unix_server(self._serve, sock=listening)
            beside.rename(self._path)
        except OSError as error:
            log.warning("other gateways cannot ask this one: %s: %s", self._path, error)
        self._looking = asyncio.get_running_loop().create_task(self._look())

    def close(self) -> None:
        """Ask and answer no more."""
        if self._looking is not None:
            self._looking.cancel()
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def ask(self, asked: Asked) -> Heard:
        """Every one of them, at the same time."""
        found = self._found()
        told = await asyncio.gather(*(self._ask(path, asked) for path in found))
        said = [(name, answer) for name, answer in zip(found.values(), told, strict=True) if answer is not None]
        silent = {name: MUTE for name, answer in said if not answer}
        here = {self._settings.name, *(name for name, _ in said)}
        silent |= {name: ABSENT for name in self._settings.gateways if name not in here}
        return Heard([(name, answer) for name, answer in said if answer], silent)

    async def _look(self) -> None:
        while True:
            self.lately = await self.ask(Asked(0, "live"))
            await asyncio.sleep(LOOK_S)

    def _found(self) -> dict[Path, str]:
        """The others' sockets and names."""
        if not self._settings.run:
            return {}
        others = {}
        with contextlib.suppress(OSError):
            for path in sorted(self._folder.iterdir()):
                if (fits := NAMED.fullmatch(path.name)) and path != self._path:
                    others[path] = fits["gateway"]
        return others

    async def _ask(self, path: Path, asked: Asked) -> bytes | None:
        """Its answer; empty: it gave none; None: there is no such keeper any more."""
        try:
            async with asyncio.timeout(ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(path)
                try:
                    writer.write(encode(asked))
                    return await _read(reader)
                finally:
                    writer.close()
        except (ConnectionRefusedError, FileNotFoundError):
            _remove(path)  # left by one that was killed
            return None
        except (OSError, TimeoutError, msgspec.MsgspecError) as error:
            log.debug("%s: no answer: %s", path, error)
        return b""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one question."""
        try:
            async with asyncio.timeout(QUESTION_S):
                asked = await _question(reader)
                writer.write(encode(Answered(asked.number, self._answer(asked))))
                await writer.drain()
        except (OSError, EOFError, TimeoutError, msgspec.MsgspecError) as error:
            log.info("a question of another keeper was not answered: %s", error or "it took too long")
        finally:
            writer.close()


async def _question(reader: asyncio.StreamReader) -> Asked:
    """Raises `EOFError` or `msgspec.MsgspecError`: it is none."""
    head = await reader.readexactly(LENGTH.size)
    (size,) = LENGTH.unpack(head)
    if size > LONGEST_QUESTION_BYTES:
        raise msgspec.ValidationError(f"{size} bytes; a question has at most {LONGEST_QUESTION_BYTES}")
    for record in Reader().feed(head + await reader.readexactly(size)):
        if isinstance(record, Asked):
            return record
    raise msgspec.ValidationError("it is another record")


async def _read(reader: asyncio.StreamReader) -> bytes:
    records = Reader()
    while data := await reader.read(READ_BYTES):
        for record in records.feed(data):
            if isinstance(record, Answered):
                return record.document
    return b""


def _remove(path: Path) -> None:
    # Where it has to stay it is asked again in vain, which costs nothing; an error would end the looking for good.
    with contextlib.suppress(OSError):
        path.unlink()


def _bind(path: Path) -> socket.socket:
    """A socket that only this user can reach."""
    listening = socket.socket(socket.AF_UNIX)
    previous = os.umask(0o177)
    try:
        listening.bind(str(path))
        listening.listen()
    except OSError:
        listening.close()
        raise
    finally:
        os.umask(previous)
    return listening
