"""What admission answers to gateways and operators who ask how things stand.

Owns the fairness meter and the form of the answers. Who may ask for whom is decided by whoever passes a question on.
"""

import asyncio
import logging
import time
from typing import Any

import msgspec

from policies.admission.core import AdmissionCore
from policies.admission.meter import Figures, Meter
from policies.commands import Command
from services.admission.store import Store, StoreError
from services.pump import Pump
from services.transport import Stream
from services.usage_rows import as_document
from services.wire_operator import Report, ReportAsked

MAX_DAYS = 400
REST = 20
"""After figures were worked out they are told for so many times as long as that took: however often and by however many
a report is asked for, admission gives it a twentieth of its time.
"""

log = logging.getLogger(__name__)


class Reports:
    """Answers about one core and its store."""

    def __init__(self, core: AdmissionCore, pump: Pump, store: Store) -> None:
        self._meter = Meter(core)
        self._pump = pump
        self._store = store
        self._figures: tuple[int, float, Figures] | None = None
        """Revision of the policy, until when they are told, and figures."""
        self._whole: tuple[int, float, bytes] = 0, 0.0, b""
        """Revision of the policy, until when it is told, and the report of all tenants."""
        self._answering: set[asyncio.Task[None]] = set()
        self._core = core
        self._window_tokens = 0
        pump.observers.append(self._look)

    def asked(self, stream: Stream, question: ReportAsked) -> None:
        """Answer, at once or when the store has."""
        if question.about == "fairness":
            stream.send(Report(question.number, self._fairness(question.tenant)))
        elif question.about == "usage":
            task = asyncio.get_running_loop().create_task(self._usage(stream, question))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        else:
            stream.send(Report(question.number, _failed(f'there is no report about "{question.about}"')))

    def close(self) -> None:
        """Nobody waits for an answer any more."""
        for task in self._answering:
            task.cancel()

    def _look(self, now: float, event: Any, commands: list[Command]) -> None:
        self._meter.look(now, event, commands)
        auto = self._core.auto_window
        if auto is None or auto.limit_tokens == self._window_tokens:
            return
        self._window_tokens = auto.limit_tokens
        window = self._meter.report(now).window
        seconds = "" if window.bound_s is None else f", {window.bound_s:.1f} s for each other tenant that asks"
        log.info(
            "window_tokens: auto is %s: %d of %d tokens; the gap of counters stays within %.0f%s",
            auto.phase,
            auto.limit_tokens,
            auto.pool_tokens,
            window.bound,
            seconds,
        )

    def _fairness(self, tenant: str) -> bytes:
        if not self._pump.revision:
            return _failed("admission has no policy yet")
        began_s = time.monotonic()  # the clock of the core's events
        revision = self._pump.revision
        if not tenant and revision == self._whole[0] and began_s < self._whole[1]:
            return self._whole[2]
        if self._figures is None or self._figures[0] != revision or began_s >= self._figures[1]:
            figures = self._meter.figures(began_s)
            self._figures = revision, _rested_s(began_s), figures
        document = msgspec.json.encode(self._meter.with_rows(self._figures[2], tenant))
        if not tenant:
            self._whole = revision, _rested_s(began_s), document
        return document

    async def _usage(self, stream: Stream, question: ReportAsked) -> None:
        try:
            rows = await self._store.usage(question.tenant, max(1, min(question.days, MAX_DAYS)))
        except StoreError as error:
            stream.send(Report(question.number, _failed(str(error))))
            return
        document: Any = as_document((row.day, row.tenant, row.counts) for row in rows)
        stream.send(Report(question.number, msgspec.json.encode(document)))


def _rested_s(began_s: float) -> float:
    """When what began then may be done again."""
    now = time.monotonic()
    return now + REST * (now - began_s)


def _failed(sentence: str) -> bytes:
    return msgspec.json.encode({"error": sentence})
