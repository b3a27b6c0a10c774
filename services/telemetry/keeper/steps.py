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
LINKED_BYTES = 8 * MOST_LINKS

Key = tuple[int, int, int]
"""Which start of the scheduler, executor and step."""


class Made(msgspec.Struct):
    """What is told of a step that made tokens; the tokens themselves are with their requests, and not kept twice."""

    num_decode_tokens: int
    revision: int
    budget_use: float
    kv_use: float
    uncertainty_ns: int


class Known(msgspec.Struct):
    """A step of which something is known."""

    made: Made | None
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
        self._linked = b""
        """Sequences of the step before, as far as they are linked to: most steps have those of the one before."""
        self._requests: list[Began] = []

    def note(self, step: Step, request_of: Callable[[int], Request | None]) -> None:
        """A step made tokens for readers here."""
        linked = step.sequences[:LINKED_BYTES]
        if linked != self._linked:
            # Not the requests themselves: they have all their tokens with them.
            requests: dict[int, Began] = {}
            for sequence in np.frombuffer(linked, np.int64).tolist():
                request = request_of(sequence)
                if request is not None:
                    requests[request.began.request] = request.began
            self._linked, self._requests = linked, list(requests.values())
        made = Made(step.num_decode_tokens, step.revision, step.budget_use, step.kv_use, step.uncertainty_ns)
        self._add(
            (step.scheduler_epoch, step.executor, step.step),
            Known(made, step.planned_ns, step.computed_ns, step.num_prefill_tokens, self._requests),
        )

    def note_chunk(self, key: Key, planned_ns: int, computed_ns: int, num_tokens: int, request: Request) -> None:
        """A step computed a piece of a prompt."""
        known = self._known.get(key)
        if known is None:
            self._add(key, Known(None, planned_ns, computed_ns, num_tokens, [request.began]))
        elif known.made is None:
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
        if (made := known.made) is not None:
            attributes |= {
                names.STEP_DECODE_TOKENS: made.num_decode_tokens,
                names.POLICY_REVISION: made.revision,
                names.STEP_BUDGET: made.budget_use,
                names.STEP_KV: made.kv_use,
            }
            if made.uncertainty_ns:
                attributes[names.CLOCK_UNCERTAINTY] = made.uncertainty_ns / 1e9
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
