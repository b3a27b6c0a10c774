"""What the console shows now and has shown: the keepers' figures and the services' levels, put together once a second.

Owns the history of the last minutes and who follows it. Knows no HTTP.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from services.gateway.backend import Backend
from services.gateway.neighbours import ADMISSION, SCHEDULER
from services.telemetry.keeper_link import KeeperError, KeeperLink
from services.wire_parts import Levels

PERIOD_S = 1.0
HISTORY_S = 15 * 60
NOTHING_TRACED: dict[str, Any] = {
    "figures": {"classes": {}, "tenants": {}},
    "num_running": None,
    "running": [],
    "misses": [],
    "dropped": {},
    "silent": {},
}

log = logging.getLogger(__name__)


class Live:
    """One document a second, for whoever follows.

    Args:
        model: what clients call it.
        keeper: of traces; None: there are only levels.
    """

    def __init__(self, model: str, backend: Backend, keeper: KeeperLink | None) -> None:
        self._model = model
        self._backend = backend
        self._keeper = keeper
        # Encoded, which is how they leave: as dictionaries they would take five times the memory.
        self._points: deque[msgspec.Raw] = deque(maxlen=HISTORY_S)
        self._before: Levels | None = None
        """Of the scheduler, one look ago."""
        self._before_s = 0.0
        self._newest = b""
        self._looked: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look once a second from now on."""
        self._looked = asyncio.get_running_loop().create_future()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        """Let everybody go."""
        if self._task is not None:
            self._task.cancel()
        if self._looked is not None:
            self._looked.cancel()

    async def follow(self) -> AsyncIterator[tuple[str, bytes]]:
        """Kind of event and JSON: first the `history`, then the `now` of each second. Ends when this gateway does.

        Who is slow misses seconds, and nobody waits for them.
        """
        yield "history", msgspec.json.encode(list(self._points))
        if self._newest:
            yield "now", self._newest
        while (looked := self._looked) is not None:
            # Shielded: a follower that leaves must not end the others' wait.
            try:
                await asyncio.shield(looked)
            except asyncio.CancelledError:
                if looked.cancelled():
                    return
                raise
            yield "now", self._newest

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(PERIOD_S)
            await self.look()

    async def look(self) -> None:
        """Put one document together."""
        told, trouble = await self._traced()
        figures = told.pop("figures")
        point = msgspec.Raw(msgspec.json.encode({**figures, "unix_s": int(time.time()), **self._levels()}))
        self._points.append(point)
        telemetry = {"traced": self._keeper is not None, "trouble": trouble, "dropped": told.pop("dropped")}
        document = {"point": point, "telemetry": telemetry, **told, **self._about()}
        self._newest = msgspec.json.encode(document)
        looked, self._looked = self._looked, asyncio.get_running_loop().create_future()
        if looked is not None and not looked.done():
            looked.set_result(None)

    async def _traced(self) -> tuple[dict[str, Any], str]:
        """Of all gateways; and why there is nothing, if there should be."""
        if self._keeper is None:
            return dict(NOTHING_TRACED), ""
        try:
            found: dict[str, Any] = msgspec.json.decode(await self._keeper.ask("live"))
        except KeeperError as error:
            log.debug("nothing of the last second: %s", error)
            return {**NOTHING_TRACED, "dropped": {"unread_records": self._keeper.num_dropped}}, str(error)
        return found, ""

    def _about(self) -> dict[str, Any]:
        revisions = self._backend.revisions
        policy = revisions.policy
        promises = [] if policy is None else [(each.name, each.ttft_s, each.tbt_s) for each in policy.classes]
        return {
            "model": self._model,
            "missing": self._backend.missing(),
            "num_executors": 0 if self._backend.capacity is None else self._backend.capacity.num_executors,
            "policy": revisions.now,
            "promises": promises,
            "last_rejection": revisions.last_rejection,
            "earlier": list(revisions.history)[-6:-1][::-1],
        }

    def _levels(self) -> dict[str, Any]:
        """Levels, and of what grows the rate since the last look."""
        now_s = time.monotonic()
        admission, scheduler = self._backend.levels.get(ADMISSION), self._backend.levels.get(SCHEDULER)
        before, elapsed_s = self._before, now_s - self._before_s
        self._before, self._before_s = scheduler, now_s
        levels: dict[str, Any] = {"queued": None if admission is None else admission.queued, "kv": None, "steps": None}
        if scheduler is None:
            return levels
        levels["kv"] = {"used": scheduler.used_blocks, "blocks": scheduler.blocks, "tokens": scheduler.block_tokens}
        levels["sequences"] = {
            "waiting": scheduler.num_waiting,
            "prefill": scheduler.num_prefilling,
            "decode": scheduler.num_decoding,
        }
        # A scheduler that was started again counts from nought.
        if before is None or scheduler.num_steps < before.num_steps:
            return levels
        num_steps = scheduler.num_steps - before.num_steps
        levels["steps"] = {
            "per_s": round(num_steps / elapsed_s, 2),
            "mean_s": round((scheduler.step_s - before.step_s) / num_steps, 6) if num_steps else None,
            "prefill_tokens_per_s": round((scheduler.prefill_tokens - before.prefill_tokens) / elapsed_s, 1),
            "decode_tokens_per_s": round((scheduler.decode_tokens - before.decode_tokens) / elapsed_s, 1),
            "preemptions": scheduler.num_preemptions - before.num_preemptions,
        }
        return levels
