"""Streams that are read without end, each compared with its right answer as soon as it is over.

Owns what clients do and what they were told. Knows nothing of processes and faults, but which connections a fault has
cut: it is told.
"""

import asyncio
import json
import socket
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import aiohttp
import numpy as np

from ops.bench.chaos_asks import Ask, Said, encode

HOST = "127.0.0.1"
NUM_STREAMS = 32
RETRY_S = 0.1
"""After a refusal."""
PATIENCE_S = 180.0
"""After which a stream that says nothing counts as hanging."""
LEAVE_S = 3.0
"""At most, of those that leave."""
MOST_SHOWN = 10
CUT = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError)


class FailureError(Exception):
    """An answer ended with an error; the sentence is the answer's."""


class RefusedError(Exception):
    """Not now, said before anything else."""


class House(NamedTuple):
    """Where to ask."""

    port: int
    key: str


class Tally:
    """What became of the requests of a run."""

    def __init__(self) -> None:
        self.num = Counter[str]()
        """complete, cut (with the gateway that was killed), left (by a reader), wrong (of these), refused, failed."""
        self.num_by_kind = Counter[str]()
        """Of those that are complete."""
        self.refusals = Counter[str]()
        """By what was said."""
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0
        """Of those that were answered to the end."""
        self.part_prompt_tokens = 0
        self.part_output_tokens = 0
        """The most that may have been charged for those that were cut or left."""
        self.problems: list[str] = []
        """The first of them, in words."""

    def words(self) -> str:
        """For a note."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.num_by_kind.items()))
        cut = f", {self.num['cut']} cut with their gateway" if self.num["cut"] else ""
        cut += f", {self.num['left']} left by their readers" if self.num["left"] else ""
        return f"{self.num['complete']} whole streams ({kinds}) with {self.output_tokens} tokens{cut}"

    def hung(self, text: str) -> None:
        """Nobody heard anything, or a process did not come back."""
        self.num["failed"] += 1
        self.problems.insert(0, f"hung: {text}")

    def problem(self, what: str, ask: Ask, text: str) -> None:
        """Something that must not be."""
        self.num[what] += 1
        if len(self.problems) < MOST_SHOWN:
            self.problems.append(f"{what}: {ask.kind}: {text}")


class Load:
    """So many streams at any time, over a catalogue of requests in an order drawn from `seed`."""

    def __init__(
        self,
        house: House,
        catalogue: Sequence[Ask],
        *,
        right: Sequence[Said] = (),
        num_streams: int = NUM_STREAMS,
        seed: int,
    ) -> None:
        self.tally = Tally()
        self.over = False
        """Set: no stream is begun any more."""
        self.leave_share = 0.0
        """Of the readers of a paced run, those that leave at some moment, whether they have heard anything or not."""
        self.num_pieces = 0
        self.longest_gap_s = 0.0
        """Between two pieces that anybody got; whoever asks for it begins it anew."""
        self._heard_at_s = 0.0
        self.answers: dict[int, Said] = {}
        """The last of each request, by its place in the catalogue."""
        self.num_lost = Counter[int]()
        """How often a fault has cut the connection of a port; whoever is about to kill a gateway counts those that it
        holds. The next connection may have the port before the reader of the one before knows that it is cut.
        """
        self._house = house
        self._catalogue = catalogue
        self._right = right
        self._num_streams = num_streams
        self._draw = np.random.default_rng(seed)
        self._waiting: list[int] = []
        self._heard = asyncio.Condition()

    async def run(self) -> None:
        """Until `over` is set and every stream has ended."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._num_streams):
                tasks.create_task(self._read_on())

    async def paced(self, rate: float) -> None:
        """Begin `rate` streams a second on average, whatever becomes of them, until `over` is set; then as `run`.

        No more than twice the usual number at a time, so that a machine that others slow down is not flooded.
        """
        room = asyncio.Semaphore(2 * self._num_streams)
        async with asyncio.TaskGroup() as tasks:
            while not self.over:
                await asyncio.sleep(self._draw.exponential(1 / rate))
                await room.acquire()
                leaves = self._draw.random() < self.leave_share
                leave_s = self._draw.uniform(0, LEAVE_S) if leaves else None
                asking = tasks.create_task(self._ask(self._next(), leave_s))
                asking.add_done_callback(lambda _: room.release())

    async def once(self) -> list[Said]:
        """Each request of the catalogue once, and its answer.

        Raises:
            RuntimeError: one was not answered as it should be.
        """
        self._waiting = list(range(len(self._catalogue)))[::-1]
        self.over = True
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._num_streams):
                tasks.create_task(self._empty())
        if self.tally.problems or len(self.answers) < len(self._catalogue):
            raise RuntimeError(f"this run is void: {'; '.join(self.tally.problems) or 'requests were refused'}")
        return [self.answers[number] for number in range(len(self._catalogue))]

    async def pieces(self, count: int) -> None:
        """Wait for so many more.

        Raises:
            TimeoutError: they do not come.
        """
        goal = self.num_pieces + count
        try:
            async with asyncio.timeout(PATIENCE_S), self._heard:
                await self._heard.wait_for(lambda: self.num_pieces >= goal)
        except TimeoutError:
            missing = goal - self.num_pieces
            raise TimeoutError(f"{missing} of {count} pieces did not come within {PATIENCE_S:g} s") from None

    async def _empty(self) -> None:
        while self._waiting:
            await self._ask(self._waiting.pop())

    async def _read_on(self) -> None:
        while not self.over:
            await self._ask(self._next())

    def _next(self) -> int:
        if not self._waiting:
            self._waiting = self._draw.permutation(len(self._catalogue)).tolist()
        return self._waiting.pop()

    async def _ask(self, number: int, leave_s: float | None = None) -> None:
        ask = self._catalogue[number]
        said = Said.nothing(ask.num_choices)
        tally = self.tally
        port, num_before = 0, 0

        def bound(address: Any) -> socket.socket:
            # Which connection is whose must be known before there is an answer.
            nonlocal port, num_before
            made = socket.socket(address[0], socket.SOCK_STREAM)
            made.bind((HOST, 0))
            port = made.getsockname()[1]
            num_before = self.num_lost[port]
            return made

        try:
            async with asyncio.timeout(PATIENCE_S if leave_s is None else leave_s):
                await self._read(ask, said, aiohttp.TCPConnector(force_close=True, socket_factory=bound))
        except RefusedError as error:
            tally.num["refused"] += 1
            tally.refusals[str(error)] += 1
            await asyncio.sleep(RETRY_S)
        except FailureError as error:
            tally.problem("failed", ask, f"{error} after {sum(map(len, said.texts))} characters")
        except TimeoutError:
            if leave_s is not None:
                self._unfinished("left", number, said)
                return
            tally.problem("failed", ask, f"nothing more within {PATIENCE_S:g} s after {said.texts}")
        except CUT as error:
            self._cut(number, said, error, lost=self.num_lost[port] > num_before)
        else:
            self._complete(number, said)

    async def _read(self, ask: Ask, said: Said, connector: aiohttp.TCPConnector) -> None:
        url = f"http://{HOST}:{self._house.port}{ask.path}"
        headers = {"authorization": f"Bearer {self._house.key}", "content-type": "application/json"}
        async with (
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session,
            session.post(url, data=encode(ask), headers=headers) as answer,
        ):
            if answer.status != 200:
                text = (await answer.read()).decode(errors="replace")
                if answer.status == 503 and "retry-after" in answer.headers:
                    raise RefusedError(text)
                raise FailureError(f"status {answer.status}: {text}")
            if not ask.body["stream"]:
                said.take(await answer.json())
                await self._count()
                return
            async for line in answer.content:
                if line == b"data: [DONE]\n":
                    return
                if not line.startswith(b"data: "):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise FailureError(line.decode().strip())
                if said.take(event):
                    await self._count()
            raise FailureError("the stream ended without its last event")

    async def _count(self) -> None:
        self.num_pieces += 1
        now_s = time.monotonic()
        self.longest_gap_s = max(self.longest_gap_s, now_s - self._heard_at_s if self._heard_at_s else 0.0)
        self._heard_at_s = now_s
        async with self._heard:
            self._heard.notify_all()

    def _complete(self, number: int, said: Said) -> None:
        ask, tally = self._catalogue[number], self.tally
        self.answers[number] = said
        tally.prompt_tokens += said.prompt_tokens
        tally.cached_tokens += said.cached_tokens
        tally.output_tokens += said.output_tokens
        if self._right and (difference := said.differs(self._right[number])):
            tally.problem("wrong", ask, difference)
        tally.num["complete"] += 1
        tally.num_by_kind[ask.kind] += 1

    def _cut(self, number: int, said: Said, error: Exception, *, lost: bool) -> None:
        ask, tally = self._catalogue[number], self.tally
        if not lost:
            tally.problem("failed", ask, f"its connection broke ({error!r}), whose gateway was not killed")
            return
        self._unfinished("cut", number, said)

    def _unfinished(self, what: str, number: int, said: Said) -> None:
        """An answer that nobody reads on; what there is of it must be right."""
        tally = self.tally
        tally.num[what] += 1
        if self._right:
            right = self._right[number]
            tally.part_prompt_tokens += right.prompt_tokens
            tally.part_output_tokens += right.output_tokens
            if difference := said.contradicts(right):
                tally.problem("wrong", self._catalogue[number], difference)
