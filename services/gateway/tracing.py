"""What a gateway tells its keeper: a request's begin, release and end, every step's tokens with the times of their
writes, and what was held back.

Called a few times a request and once a frame; the frame's columns go on as they came. Knows no spans and no metrics.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.clocks import ClockDifference
from services.errors import RequestError
from services.gateway.policy import Revisions
from services.gateway.streams import Answer, StreamedAnswer
from services.telemetry.context import new_span_id, parents, traceparent_of
from services.telemetry.keeper_link import KeeperLink
from services.telemetry.records import Began, Ended, Let, PolicyInForce, Step, Written
from services.telemetry.stamps import CHUNK_COLUMNS
from services.wire import Admitted, Submit, TokenFrame

INT32_BYTES = 4
NEVER_BEGUN = (
    "queue_full",
    "queue_timeout",
    "would_be_late",
    "rate_limit_exceeded",
    "request_exceeds_limit",
    "context_length_exceeded",
)
CANCELLED = ("client_gone", "slow_reader", "cancelled", "draining")


class Origin(NamedTuple):
    """Where an answer's requests come from."""

    traceparent: str = ""
    """The client's header, whatever is in it."""
    operation: str = "chat"
    """`gen_ai.operation.name`."""


class Tracing:
    """The records of one gateway. Without a link nothing is recorded, and nothing else changes."""

    def __init__(self, model: str, link: KeeperLink | None) -> None:
        self.on = link is not None
        self._model = model
        self._link = link

    def policy(self, revisions: Revisions) -> None:
        """Another revision is in force."""
        policy, now = revisions.policy, revisions.now
        if self._link is None or policy is None or now is None:
            return
        classes = [(slo.name, slo.ttft_s, slo.tbt_s) for slo in policy.classes]
        shares = policy.tracing.spans_for
        self._link.record(
            PolicyInForce(now.revision, policy.name, classes, shares.slo_miss, shares.error, shares.otherwise)
        )

    def begin(self, submits: Sequence[Submit], answer: Answer, origin: Origin) -> None:
        """Requests that have their ids are about to be handed on; each gets a span of its own in the client's trace."""
        trace_id, parent_id = parents(origin.traceparent)
        for submit in submits:
            span_id = new_span_id()
            submit.traceparent = traceparent_of(trace_id, span_id)
            if self._link is None:
                continue
            self._link.record(
                Began(
                    request=submit.request,
                    answer_id=answer.shape.answer_id,
                    trace_id=trace_id,
                    parent_id=parent_id,
                    span_id=span_id,
                    operation=origin.operation,
                    model=self._model,
                    tenant=submit.tenant,
                    project=submit.project,
                    prompt_tokens=len(submit.prompt) // INT32_BYTES,
                    max_output_tokens=submit.max_output_tokens,
                    num_choices=len(submit.sampling),
                    received_ns=submit.received_ns,
                    tokenized_ns=submit.tokenized_ns,
                    streamed=isinstance(answer, StreamedAnswer),
                )
            )

    def let(self, admitted: Admitted, clock: ClockDifference) -> None:
        """Admission released a request."""
        if self._link is not None and admitted.slo_class:
            self._link.record(
                Let(
                    request=admitted.request,
                    slo_class=admitted.slo_class,
                    revision=admitted.revision,
                    queued_ns=clock.ours(admitted.queued_ns),
                    released_ns=clock.ours(admitted.released_ns),
                    waits_s=admitted.waits_s,
                    counter=admitted.counter,
                )
            )

    def step(
        self,
        frame: TokenFrame,
        clock: ClockDifference,
        gateway_in_ns: int,
        written_ns: NDArray[np.int64],
        scheduler_epoch: int,
    ) -> None:
        """A frame's tokens are with their readers, or (0) held back."""
        if self._link is None:
            return
        self._link.record(
            Step(
                step=frame.step,
                executor=frame.executor,
                revision=frame.revision,
                sequences=frame.sequences,
                finish=frame.finish,
                ready_ns=_ours(frame.ready_ns, clock),
                causes=frame.causes or bytes(len(frame.finish)),
                planned_ns=clock.ours(frame.planned_ns),
                launched_ns=clock.ours(frame.launched_ns),
                computed_ns=clock.ours(frame.computed_ns),
                returned_ns=clock.ours(frame.returned_ns),
                gateway_in_ns=gateway_in_ns,
                written_ns=written_ns.tobytes(),
                num_prefill_tokens=frame.num_prefill_tokens,
                num_decode_tokens=frame.num_decode_tokens,
                chunks=_chunks_on_our_clock(frame.chunks, clock) if clock.ahead_ns else frame.chunks,
                prefix_hits=frame.prefix_hits,
                budget_use=frame.budget_use,
                kv_use=frame.kv_use,
                uncertainty_ns=frame.uncertainty_ns + clock.uncertainty_ns,
                scheduler_epoch=scheduler_epoch,
            )
        )

    def written(self, answer: Answer) -> None:
        """All that was held of an answer is with the socket."""
        if self._link is not None:
            self._link.record(Written(answer.sequences, time.monotonic_ns()))

    def end(self, answer: Answer) -> None:
        """An answer is over, and so are its requests."""
        if self._link is None:
            return
        now_ns = time.monotonic_ns()
        outcome, code = _outcome(answer.failure)
        made = dict.fromkeys(answer.requests, 0)
        for choice in answer.choices:
            made[choice.running.request] += choice.num_tokens
        for request, num_tokens in made.items():
            self._link.record(Ended(request, outcome, code, num_tokens, now_ns, answer.slow_ns))


def _ours(stamps: bytes, clock: ClockDifference) -> bytes:
    """int64 stamps of a peer's, on our clock."""
    if not clock.ahead_ns:
        return stamps
    return (np.frombuffer(stamps, np.int64) - clock.ahead_ns).tobytes()


def _chunks_on_our_clock(chunks: dict[int, bytes], clock: ClockDifference) -> dict[int, bytes]:
    moved = {}
    first_stamp = CHUNK_COLUMNS.index("planned")
    for sequence, columns in chunks.items():
        table = np.frombuffer(columns, np.int64).reshape(-1, len(CHUNK_COLUMNS)).copy()
        table[:, first_stamp:] -= clock.ahead_ns
        moved[sequence] = table.tobytes()
    return moved


def _outcome(failure: RequestError | None) -> tuple[str, str]:
    if failure is None:
        return "finished", ""
    if failure.code in CANCELLED:
        return "cancelled", failure.code
    return ("refused" if failure.code in NEVER_BEGUN else "error"), failure.code
