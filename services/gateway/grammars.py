"""Tries the grammars of requests before they are admitted: a wrong schema is a 400 and never a broken answer.

Owns the process that tries them (`trials`) and what it said of the last grammars.
"""

import asyncio
import hashlib
import logging
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter, OrderedDict
from contextlib import suppress
from pathlib import Path

import msgspec

from services.errors import RequestError
from services.gateway.structure import Structure
from services.gateway.trials import LIMIT_BYTES, LIMIT_S, READY, Trial, Verdict
from services.gateway.turns import Turns

MAX_KNOWN = 4096
MAX_WAITING = 64
"""New grammars of a tenant at once. One takes milliseconds, and `LIMIT_S` at most; tenants have turns."""
ANSWER_S = 60.0
"""However busy the machine is; then something else is wrong."""
TOO_COSTLY = (
    f"it takes more than {LIMIT_S:g} s of computing or {LIMIT_BYTES // 2**20} MiB to compile; "
    "it needs fewer alternatives, smaller numbers or shorter patterns"
)

log = logging.getLogger(__name__)


class Grammars:
    """What is known of grammars. A process is started with the first one, and again after one that ended it."""

    def __init__(self, folder: Path, vocabulary_size: int) -> None:
        self._command = ("-m", "services.gateway.trials", str(folder), str(vocabulary_size))
        self._process: Process | None = None
        self._turns = Turns()
        self._num_waiting: Counter[str] = Counter()
        """By tenant."""
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()
        self._waiting: dict[bytes, asyncio.Task[Verdict]] = {}

    async def check(self, structure: Structure, grammar: str, tenant: str) -> None:
        """Whether executors can follow the grammar of a structure, which a tenant asks.

        Raises:
            RequestError: they cannot, and the sentence names the schema at fault if it is one alone; or too many
                grammars of the tenant are being tried.
        """
        key = hashlib.sha256(grammar.encode()).digest()
        verdict = self._verdicts.get(key)
        schemas = list(structure.schemas())
        if verdict is None:
            trial = Trial(grammar, [schema for _, schema in schemas])
            # The trial goes on when a client leaves: others may have asked the same, and its answer must be read.
            verdict = await asyncio.shield(self._verdict(key, trial, tenant))
        if verdict.schema is not None:
            param = schemas[verdict.schema][0]
            message = f"{param}: this schema cannot be followed: {verdict.problem}"
            raise RequestError("invalid_value", message, param=param)
        if verdict.problem:
            param = structure.at_fault
            message = f"{param}: the answer cannot be held to this form: {verdict.problem}"
            raise RequestError("invalid_value", message, param=param)

    async def close(self) -> None:
        """End the process."""
        for task in list(self._waiting.values()):
            task.cancel()
        await self._end()

    def _verdict(self, key: bytes, trial: Trial, tenant: str) -> "asyncio.Task[Verdict]":
        task = self._waiting.get(key)
        if task is None:
            if self._num_waiting[tenant] >= MAX_WAITING:
                message = f"{MAX_WAITING} new grammars of yours are being tried; try again in a moment"
                raise RequestError("queue_full", message)
            self._num_waiting[tenant] += 1
            task = self._waiting[key] = asyncio.get_running_loop().create_task(self._try(key, trial, tenant))
            task.add_done_callback(lambda _: self._tried(key, tenant))
        return task

    def _tried(self, key: bytes, tenant: str) -> None:
        del self._waiting[key]
        self._num_waiting[tenant] -= 1
        if not self._num_waiting[tenant]:
            del self._num_waiting[tenant]

    async def _try(self, key: bytes, trial: Trial, tenant: str) -> Verdict:
        async with self._turns.of(tenant):
            verdict = await self._ask(trial)
            if verdict is None:  # the memory of those before may have been what was missing
                verdict = await self._ask(trial) or Verdict(TOO_COSTLY)
        self._verdicts[key] = verdict
        if len(self._verdicts) > MAX_KNOWN:
            self._verdicts.popitem(last=False)
        return verdict

    async def _ask(self, trial: Trial) -> Verdict | None:
        """None: the trial ended the process."""
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, *self._command, stdin=PIPE, stdout=PIPE
            )
            if await self._answer(self._process, b"") != READY:
                log.error("the process that tries grammars does not start: status %s", await self._end())
                raise RequestError("internal_error", "the grammar cannot be tried; the gateway's log says why")
        line = await self._answer(self._process, msgspec.json.encode(trial) + b"\n")
        if line:
            return msgspec.json.decode(line, type=Verdict)
        status = await self._end()
        log.info("a grammar of %d characters ended the process that tried it: status %s", len(trial.grammar), status)
        return Verdict(TOO_COSTLY) if status == -signal.SIGPROF else None

    @staticmethod
    async def _answer(process: Process, line: bytes) -> bytes:
        """What the process says next; empty if it ends instead."""
        assert process.stdin is not None  # noqa: S101  it was started with pipes
        assert process.stdout is not None  # noqa: S101
        with suppress(ConnectionError, TimeoutError, RuntimeError):  # the last one is uvloop's for a closed pipe
            async with asyncio.timeout(ANSWER_S):
                process.stdin.write(line)
                await process.stdin.drain()
                return await process.stdout.readline()
        return b""

    async def _end(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        with suppress(ProcessLookupError):
            process.kill()
        assert process.stdin is not None  # noqa: S101  it was started with pipes
        process.stdin.close()
        return await process.wait()
