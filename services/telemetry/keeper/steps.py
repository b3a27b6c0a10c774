"""Steps as spans of their own: those in which a kept request had a part, linked to the requests that this gateway had
in them, as their spans are linked to it.

Owns the newest steps. A step's ids follow from its number and the start of its scheduler, so that whoever refers to it
needs no answer. Its trace is the same for all gateways; in it each has a span of its own, with links to the requests
that only it knows: backends keep one span of an id.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from services.telemetry import names
from services.telemetry.attributes import attributes_of
from services.telemetry.keeper.requests import Request
from services.telemetry.records import Began, Step

MOST_LINKS = 32
"""More of them tell nobody more, and a message has thousands of steps."""

Key = tuple[int, int, int]
"""Which start of the scheduler, executor and step."""


class Known(msgspec.Struct):
    """A step of which something is known."""

    step: Step | None
    """None: it made no token for this gateway, only a piece of a prompt."""
    planned_ns: int
    computed_ns: int
    num_prefill_tokens: int
    requests: list[Began]
    written: bool = False
    """Its span is made."""


class Steps:
    """The steps of one scheduler as a gateway saw them: so many of the newest."""

    def __init__(self, scheduler: str, gateway: str, most: int) -> None:
        self._scheduler = scheduler
        self._gateway = int.from_bytes(hashlib.blake2b(gateway.encode(), digest_size=8).digest(), "big")
        self._most = most
        self._known: OrderedDict[Key, Known] = OrderedDict()

    def note(self, step: Step, request_of: Callable[[int], Request | None]) -> None:
        """A step made tokens for readers here."""
        # Not the requests themselves: they have all their tokens with them.
        requests: dict[int, Began] = {}
        for sequence in np.frombuffer(step.sequences, np.int64)[:MOST_LINKS].tolist():
            request = request_of(sequence)
            if request is not None:
                requests[request.began.request] = request.began
        self._add(
            (step.scheduler_epoch, step.executor, step.step),
            Known(step, step.planned_ns, step.computed_ns, step.num_prefill_tokens, list(requests.values())),
        )

    def note_chunk(self, key: Key, planned_ns: int, computed_ns: int, num_tokens: int, request: Request) -> None:
        """A step computed a piece of a prompt."""
        known = self._known.get(key)
        if known is None:
            self._add(key, Known(None, planned_ns, computed_ns, num_tokens, [request.began]))
        elif known.step is None:
            known.num_prefill_tokens += num_tokens
            known.requests.append(request.began)

    def link(self, key: Key) -> Span.Link:
        """To a step's span of this gateway."""
        trace_id, span_id = self._ids(key)
        return Span.Link(trace_id=trace_id, span_id=span_id)

    def spans(self, keys: Iterator[Key], wall_ns: Callable[[int], int]) -> Iterator[Span]:
        """Spans of those of these steps that have none yet."""
        for key in keys:
            known = self._known.get(key)
            if known is not None and not known.written:
                known.written = True
                yield self._span(key, known, wall_ns)

    def _add(self, key: Key, known: Known) -> None:
        self._known[key] = known
        if len(self._known) > self._most:
            self._known.popitem(last=False)

    def _ids(self, key: Key) -> tuple[bytes, bytes]:
        epoch, executor, step = key
        digest = hashlib.blake2b(f"{self._scheduler}/{epoch}/{executor}/{step}".encode(), digest_size=24).digest()
        return digest[:16], (int.from_bytes(digest[16:], "big") ^ self._gateway).to_bytes(8, "big")

    def _span(self, key: Key, known: Known, wall_ns: Callable[[int], int]) -> Span:
        _, executor, number = key
        trace_id, span_id = self._ids(key)
        attributes: dict[str, str | int | float] = {
            names.EXECUTOR: executor,
            names.STEP_NUMBER: number,
            names.STEP_PREFILL_TOKENS: known.num_prefill_tokens,
        }
        if known.step is not None:
            attributes |= {
                names.STEP_DECODE_TOKENS: known.step.num_decode_tokens,
                names.POLICY_REVISION: known.step.revision,
                names.STEP_BUDGET: known.step.budget_use,
                names.STEP_KV: known.step.kv_use,
            }
            if known.step.uncertainty_ns:
                attributes[names.CLOCK_UNCERTAINTY] = known.step.uncertainty_ns / 1e9
        return Span(
            trace_id=trace_id,
            span_id=span_id,
            name=names.STEP,
            kind=Span.SPAN_KIND_INTERNAL,
            start_time_unix_nano=wall_ns(known.planned_ns),
            end_time_unix_nano=wall_ns(max(known.computed_ns, known.planned_ns)),
            attributes=attributes_of(attributes),
            links=[Span.Link(trace_id=began.trace_id, span_id=began.span_id) for began in known.requests[:MOST_LINKS]],
        )
