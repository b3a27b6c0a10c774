"""Ended requests as OTLP spans, made in bulk straight into the protocol's messages.

The tree is that of the telemetry specification, section 3. Spans of another service's work bear that service's name, so
that a backend shows who did what, though the gateway's keeper writes them all. A step has a trace of its own whose ids
follow from its number: whoever writes a span about it knows them without asking.
"""

import os
from collections.abc import Callable, Iterable, Iterator

import msgspec
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from policies.scheduling.causes import Cause
from services.telemetry import names
from services.telemetry.attributes import Value, attributes_of, resource_attributes
from services.telemetry.keeper.arrays import pack
from services.telemetry.keeper.parts import token_parts
from services.telemetry.keeper.requests import Output, Request
from services.telemetry.keeper.rows import CAUSE, STAMP_COLUMNS, WRITTEN
from services.telemetry.keeper.steps import Steps
from services.telemetry.keeper.verdict import FAILED, Verdict
from services.telemetry.records import Began, PolicyInForce
from services.telemetry.stamps import CAUSES, CHUNK_COLUMNS, TOKEN_PARTS

GATEWAY, ADMISSION, SCHEDULER = "gateway", "admission", "scheduler"
PARTS = [names.PART.format(part) for part in TOKEN_PARTS]
STEP, EXECUTOR = STAMP_COLUMNS.index("step"), STAMP_COLUMNS.index("executor")
EPOCH = STAMP_COLUMNS.index("scheduler_epoch")
SPANS_OF_A_REQUEST, SPANS_OF_A_MESSAGE = 8, 2000
"""Without those of tokens; a token's with its step's is a kilobyte, and gRPC takes 4 MiB."""
PLANNED = STAMP_COLUMNS.index("planned")


class Written(msgspec.Struct):
    """A request that ended, with what was found about it."""

    request: Request
    verdict: Verdict
    policy: PolicyInForce | None

    @property
    def num_tokens(self) -> int:
        """That its reader got."""
        return sum(len(table) for output in self.request.outputs.values() for table in output.tokens)


class Spans:
    """Writes requests down.

    Args:
        instance: `service.instance.id` of the resources.
        wall_ns: from a stamp to nanoseconds since 1970.
        steps: the steps that requests went through.
    """

    def __init__(self, instance: str, wall_ns: Callable[[int], int], steps: Steps) -> None:
        self._instance = instance
        self._wall_ns = wall_ns
        self._steps = steps

    def resource_spans(self, ended: Iterable[Written]) -> list[ResourceSpans]:
        """Spans of these requests, by service."""
        spans: dict[str, list[Span]] = {GATEWAY: [], ADMISSION: [], SCHEDULER: []}
        for one in ended:
            self._add(one, spans)
        return [
            ResourceSpans(
                resource=Resource(attributes=resource_attributes(service, self._instance)),
                scope_spans=[ScopeSpans(scope=InstrumentationScope(name="fairlead"), spans=made)],
            )
            for service, made in spans.items()
            if made
        ]

    def _add(self, one: Written, spans: dict[str, list[Span]]) -> None:
        request, began, let, ended = one.request, one.request.began, one.request.let, one.request.ended
        end_ns = began.tokenized_ns if ended is None else ended.ended_ns
        root = began.span_id
        failed = ended is not None and ended.outcome in FAILED
        chat = self._span(began, names.CHAT, began.received_ns, end_ns, span_id=root, parent=began.parent_id)
        chat.name = f"{names.CHAT} {began.model}"
        chat.kind = Span.SPAN_KIND_SERVER
        chat.attributes.extend(attributes_of(_of_request(one)))
        if failed and ended is not None:
            chat.status.CopyFrom(Status(code=Status.STATUS_CODE_ERROR, message=ended.code))
        spans[GATEWAY] += [chat, self._span(began, names.TOKENIZE, began.received_ns, began.tokenized_ns, parent=root)]
        if let is None:
            return
        waits: dict[str, Value] = {names.WAIT.format(cause): wait_s for cause, wait_s in let.waits_s.items()}
        waits[names.COUNTER] = let.counter
        spans[ADMISSION].append(
            self._span(began, names.ADMISSION, let.queued_ns, let.released_ns, parent=root, attributes=waits)
        )
        for output in request.outputs.values():
            self._add_output(one, output, let.released_ns, spans)

    def _add_output(self, one: Written, output: Output, released_ns: int, spans: dict[str, list[Span]]) -> None:
        stamps = output.stamps()
        if not len(stamps):
            return
        began, root, mine = one.request.began, one.request.began.span_id, spans[SCHEDULER]
        sequence = next(number for number, held in one.request.outputs.items() if held is output)
        chunks = output.chunks.tolist()
        planned_ns = chunks[0][CHUNK_COLUMNS.index("planned")] if chunks else int(stamps[0, PLANNED])
        first_made_ns, last_made_ns = int(stamps[0, 3]), int(stamps[-1, 3])
        mine.append(self._span(began, names.QUEUE, released_ns, max(released_ns, planned_ns), parent=root))
        prefill = self._span(began, names.PREFILL, planned_ns, first_made_ns, parent=root)
        prefill.attributes.extend(
            attributes_of({names.PREFIX_HITS: one.request.prefix_hit_tokens, names.NUM_CHUNKS: len(chunks)})
        )
        decode = self._span(began, names.DECODE, first_made_ns, last_made_ns, parent=root)
        decode.attributes.extend(
            attributes_of(
                {
                    names.SEQUENCE: sequence,
                    names.GENAI_OUTPUT_TOKENS: len(stamps),
                    names.NUM_PREEMPTIONS: int((stamps[:, CAUSE] == Cause.PREEMPTED).sum()),
                    names.TOKENS: pack(stamps, began.received_ns),
                }
            )
        )
        mine += [prefill, decode]
        written = stamps[:, WRITTEN].tolist()
        spans[GATEWAY].append(self._span(began, names.DELIVER, int(stamps[0, 5]), written[-1], parent=root))
        if not one.verdict.kept:
            return
        epoch, executor = stamps[0, [EPOCH, EXECUTOR]].tolist()
        for step, num_tokens, chunk_planned_ns, _, computed_ns in chunks:
            key = (epoch, executor, step)
            self._steps.note_chunk(key, chunk_planned_ns, computed_ns, num_tokens, one.request)
            chunk = self._span(began, names.CHUNK, chunk_planned_ns, computed_ns, parent=prefill.span_id)
            chunk.attributes.extend(attributes_of({names.CHUNK_TOKENS: num_tokens, names.STEP_NUMBER: step}))
            chunk.links.append(self._steps.link(key))
            mine.append(chunk)
        mine += self._tokens(one, output, decode.span_id)
        of_tokens = map(tuple, stamps[:, [EPOCH, EXECUTOR, STEP]].tolist())
        been_in = [*((epoch, executor, chunk[0]) for chunk in chunks), *of_tokens]
        mine += self._steps.spans(iter(dict.fromkeys(been_in)), self._wall_ns)

    def _tokens(self, one: Written, output: Output, parent: bytes) -> Iterable[Span]:
        """A span for each token after the first: from when its reader got the one before to when it got this."""
        stamps = output.stamps()
        before = stamps[:-1, WRITTEN]
        parts = (token_parts(before, stamps[1:, : WRITTEN + 1]) / 1e9).tolist()
        rows = stamps[1:, [WRITTEN, CAUSE, STEP, EXECUTOR, EPOCH]].tolist()
        for index, (start_ns, row, of_token) in enumerate(zip(before.tolist(), rows, parts, strict=True), start=1):
            written_ns, cause, step, executor, epoch = row
            token = self._span(one.request.began, names.TOKEN, start_ns, written_ns, parent=parent)
            attributes: dict[str, Value] = {names.INDEX: index, names.CAUSE: CAUSES[cause], names.STEP_NUMBER: step}
            attributes.update(zip(PARTS, of_token, strict=True))
            token.attributes.extend(attributes_of(attributes))
            token.links.append(self._steps.link((epoch, executor, step)))
            yield token

    def _span(
        self,
        began: Began,
        name: str,
        start_ns: int,
        end_ns: int,
        *,
        parent: bytes = b"",
        span_id: bytes = b"",
        attributes: dict[str, Value] | None = None,
    ) -> Span:
        return Span(
            trace_id=began.trace_id,
            span_id=span_id or os.urandom(8),
            parent_span_id=parent,
            name=name,
            kind=Span.SPAN_KIND_INTERNAL,
            start_time_unix_nano=self._wall_ns(start_ns),
            end_time_unix_nano=self._wall_ns(max(end_ns, start_ns)),
            attributes=attributes_of(attributes or {}),
        )


def in_groups(ended: Iterable[Written]) -> Iterator[list[Written]]:
    """The same in groups of about a message each: no more spans than that are held at once."""
    group: list[Written] = []
    num_spans = 0
    for one in ended:
        num_spans += SPANS_OF_A_REQUEST + (one.num_tokens if one.verdict.kept else 0)
        group.append(one)
        if num_spans >= SPANS_OF_A_MESSAGE:
            yield group
            group, num_spans = [], 0
    if group:
        yield group


def trace_messages(spans: list[ResourceSpans]) -> Iterator[tuple[bytes, int]]:
    """Export requests of a size that collectors take, and how many spans each holds."""
    for resource in spans:
        (scope,) = resource.scope_spans
        for start in range(0, len(scope.spans), SPANS_OF_A_MESSAGE):
            some = scope.spans[start : start + SPANS_OF_A_MESSAGE]
            part = ResourceSpans(resource=resource.resource, scope_spans=[ScopeSpans(scope=scope.scope, spans=some)])
            yield ExportTraceServiceRequest(resource_spans=[part]).SerializeToString(), len(some)


def _of_request(one: Written) -> dict[str, Value]:
    request, began, ended = one.request, one.request.began, one.request.ended
    made = sum(len(output.stamps()) for output in request.outputs.values())
    attributes: dict[str, Value] = {
        names.GENAI_OPERATION: began.operation,
        names.GENAI_PROVIDER: "fairlead",
        names.GENAI_REQUEST_MODEL: began.model,
        names.GENAI_RESPONSE_MODEL: began.model,
        names.GENAI_RESPONSE_ID: began.answer_id,
        names.GENAI_MAX_TOKENS: began.max_output_tokens,
        names.GENAI_CHOICES: began.num_choices,
        names.GENAI_INPUT_TOKENS: began.prompt_tokens,
        names.GENAI_OUTPUT_TOKENS: made,
        names.REQUEST: began.request,
        names.TENANT: began.tenant,
        names.PROJECT: began.project,
        names.CLASS: request.slo_class,
        names.OUTCOME: "" if ended is None else ended.outcome,
        names.KEPT: one.verdict.kept,
        names.SLO_MISSED: ",".join(one.verdict.missed),
        names.SLO_BLAME: ",".join(one.verdict.missed.values()),
    }
    if one.policy is not None:
        attributes |= {names.POLICY_NAME: one.policy.name, names.POLICY_REVISION: one.policy.revision}
    if ended is not None and ended.code:
        attributes[names.ERROR_TYPE] = ended.code
    return {name: value for name, value in attributes.items() if value != ""}
