"""The store of a single admission process: limits in its memory, everything kept in a SQLite file beside it.

Owns the clock that limits go by and the thread that writes; never keeps the event loop waiting.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from policies.admission.limits.book import LimitBook
from policies.admission.limits.items import LimitItem
from services.admission.kept_file import KeptFile
from services.admission.store import Answer, Batch, Kept, StoreError
from services.runtime import StartError
from services.usage_rows import FILE, UsageError, UsageRow, read_usage

AT = "at_ns"
"""Among the levels: when they were so. No limit has this name."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()


class EmbeddedStore:
    """Meets `services.admission.store.Store`."""

    def __init__(self, data: str, answer: Answer) -> None:
        self._path = Path(data) / FILE
        self._file = KeptFile(self._path)
        self._answer = answer
        self._book = LimitBook()
        self._book.changed = {}
        # The wall's time when it began, and from then on a clock that nobody sets: where the wall's is put forward and
        # back, what was taken of a limit would neither be back early nor wait for the difference.
        self._wall_ahead_ns = time.time_ns() - time.monotonic_ns()
        self._thread = ThreadPoolExecutor(1, "admission-store")
        self._is_closed = False

    async def open(self) -> Kept:
        """As `Store.open`; limits go on from where they were."""
        kept, levels = await asyncio.get_running_loop().run_in_executor(self._thread, self._file.open)
        if AT in levels:
            try:
                at_ns = int(_decoder.decode(levels.pop(AT)))
                limits = {name: _decoder.decode(level) for name, level in levels.items()}
                self._book.load({"at_ns": at_ns, "limits": limits}, self._now_ns())
            except (msgspec.MsgspecError, ValueError, TypeError) as error:
                raise StartError(
                    f"{self._path}: its limits cannot be read: {error}; move the file away to begin with full ones"
                ) from error
        return kept

    def reserve(self, request: int, items: tuple[LimitItem, ...]) -> None:
        """As `Store.reserve`; answered before it returns."""
        self._answer(self._book.reserve(request, items, self._now_ns()))

    def adjust(self, request: int, items: tuple[tuple[LimitItem, int], ...]) -> None:
        """As `Store.adjust`."""
        self._book.adjust(request, items, self._now_ns())

    async def save(self, batch: Batch) -> None:
        """As `Store.save`."""
        levels = self._levels(batch)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._file.write, batch, levels)

    async def usage(self, tenant: str, num_days: int) -> list[UsageRow]:
        """As `Store.usage`; what has not been saved yet is missing."""
        # A thread of its own: a question must not wait for a disk that hangs in the writer's.
        try:
            return await asyncio.to_thread(read_usage, self._path, tenant, num_days)
        except UsageError as error:
            raise StoreError(str(error)) from error

    async def close(self) -> None:
        """As `Store.close`."""
        if not self._is_closed:
            self._is_closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._file.close)
            self._thread.shutdown(wait=False)

    def _levels(self, batch: Batch) -> dict[str, bytes | None]:
        if batch.is_whole:
            dumped = self._book.dump()
            found: dict[str, Any] = dumped["limits"]
        else:
            found = {name: self._book.dump_one(name) for name in self._book.changed or ()}
        self._book.changed = {}
        levels = {name: None if level is None else _encoder.encode(level) for name, level in found.items()}
        if levels or batch.is_whole:
            levels[AT] = _encoder.encode(self._now_ns())
        return levels

    def _now_ns(self) -> int:
        return time.monotonic_ns() + self._wall_ahead_ns
