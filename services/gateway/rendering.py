"""Renders chat templates in a process of their own: one that computes for ever ends that process, not this one.

Owns the process (`render_process`) and which conversations wait for it. Knows no tokens.
"""

import asyncio
import logging
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from engine.chat_template import NO_TEMPLATE, read_source
from engine.interface import EngineError
from services.errors import RequestError
from services.gateway.render_process import LIMIT_BYTES, LIMIT_S, READY, Conversation, Prompt

MAX_WAITING = 4096
ANSWER_S = 30.0
"""However busy the machine is; then something else is wrong."""
LONGEST_LINE_BYTES = 64 * 2**20
TOO_COSTLY = (
    f"the model's chat template takes more than {LIMIT_S:g} s of computing or "
    f"{LIMIT_BYTES // 2**20} MiB for this conversation; shorten it, or ask the operator for another template"
)

log = logging.getLogger(__name__)


class Asked(NamedTuple):
    """A conversation that is being rendered."""

    line: bytes
    answer: asyncio.Future[Prompt]
    again: bool = False
    """The process ended over it once, for whatever reason."""


class Rendering:
    """Of one model. Conversations are rendered in the order they come; the process is started anew when one ends it.

    Args:
        folder: of the model.
        max_characters: of a prompt.
    """

    def __init__(self, folder: Path, max_characters: int) -> None:
        self._folder = folder
        self._command = ("-m", "services.gateway.render_process", str(folder), str(max_characters))
        self._has_template = False
        self._process: Process | None = None
        self._asked: deque[Asked] = deque()
        self._answering: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin, if the model has a template at all.

        Raises:
            EngineError: the template cannot be read.
        """
        if read_source(self._folder) is not None:
            problem = await self._begin()
            if problem:
                raise EngineError(problem)
            self._has_template = True

    async def render(self, messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> str:
        """The prompt of a conversation.

        Raises:
            RequestError: the template refuses it or takes too long over it, or too many wait.
        """
        if not self._has_template:
            raise RequestError("invalid_value", f"messages: {NO_TEMPLATE}", param="messages")
        if len(self._asked) >= MAX_WAITING:
            raise RequestError("queue_full", f"{MAX_WAITING} conversations wait for the chat template; try again")
        loop = asyncio.get_running_loop()
        line = msgspec.json.encode(Conversation(messages, list(tools))) + b"\n"
        asked = Asked(line, loop.create_future())
        self._asked.append(asked)
        if self._process is not None:
            _write(self._process, [asked])
        if self._answering is None or self._answering.done():
            self._answering = loop.create_task(self._answer_all())
        prompt = await asked.answer
        if prompt.problem:
            raise RequestError("invalid_value", f"messages: {prompt.problem}", param="messages")
        return prompt.text

    async def close(self) -> None:
        """End the process."""
        if self._answering is not None:
            self._answering.cancel()
            with suppress(asyncio.CancelledError):
                await self._answering
        await self._end()

    async def _answer_all(self) -> None:
        """Until nobody waits."""
        while self._asked:
            if self._process is None:
                problem = await self._begin()
                if self._process is None:
                    log.error("chat templates cannot be rendered: %s", problem)
                    self._refuse_all("the chat template cannot be rendered; the gateway's log says why")
                    return
                _write(self._process, self._asked)
            line = await _line(self._process)
            asked = self._asked.popleft()
            if line:
                prompt = msgspec.json.decode(line, type=Prompt)
            else:
                # Whoever was first in line is the one at fault; the others are asked again of a new process.
                status = await self._end()
                size = len(asked.line)
                log.warning("a conversation of %d bytes ended the process that rendered it: status %s", size, status)
                if status != -signal.SIGPROF and not asked.again:
                    self._asked.appendleft(asked._replace(again=True))
                    continue
                prompt = Prompt("", TOO_COSTLY)
            if not asked.answer.done():  # its client may have left
                asked.answer.set_result(prompt)

    def _refuse_all(self, problem: str) -> None:
        while self._asked:
            asked = self._asked.popleft()
            if not asked.answer.done():
                asked.answer.set_exception(RequestError("internal_error", problem))

    async def _begin(self) -> str:
        """Start the process. Returns what is wrong, or nothing."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, *self._command, stdin=PIPE, stdout=PIPE, limit=LONGEST_LINE_BYTES
        )
        try:
            line = await _line(process)
            if line == READY:
                self._process = process
                return ""
        finally:
            if self._process is not process:
                status = await _kill(process)
        if status == -signal.SIGPROF:
            return f"{self._folder}: the chat template takes more than {LIMIT_S:g} s to compile"
        return line.decode().strip() or f"{self._folder}: the process that renders templates ended with status {status}"

    async def _end(self) -> int | None:
        process, self._process = self._process, None
        return None if process is None else await _kill(process)


def _write(process: Process, asked: Iterable[Asked]) -> None:
    assert process.stdin is not None  # noqa: S101  it was started with pipes
    with suppress(ConnectionError, RuntimeError):  # it ended; whoever reads its answers finds out
        for each in asked:
            process.stdin.write(each.line)


async def _line(process: Process) -> bytes:
    """What the process says next; empty if it ends instead."""
    assert process.stdout is not None  # noqa: S101  it was started with pipes
    with suppress(ConnectionError, TimeoutError, ValueError):  # the last one for a line that is too long
        async with asyncio.timeout(ANSWER_S):
            line = await process.stdout.readline()
            return line if line.endswith(b"\n") else b""
    return b""


async def _kill(process: Process) -> int:
    with suppress(ProcessLookupError):
        process.kill()
    assert process.stdin is not None  # noqa: S101  it was started with pipes
    process.stdin.close()
    return await process.wait()
