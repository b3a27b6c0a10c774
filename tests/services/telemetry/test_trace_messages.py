"""Messages to a collector stay below what it takes, however much ended at once, and hold every span."""

import time

import numpy as np
from msgspec.structs import replace

from policies.scheduling.causes import Cause
from services.telemetry import names
from services.telemetry.keeper.keeper import Keeper
from services.telemetry.keeper.settings import KeeperSettings
from services.telemetry.keeper.spans import SPANS_OF_A_MESSAGE, Spans, in_groups, trace_messages
from services.telemetry.records import Ended, PolicyInForce
from tests.services.telemetry.records import began, let, step

GRPC_TAKES_BYTES = 4 * 2**20
TOKENS, REQUESTS = 3000, 40


def test_no_message_is_larger_than_a_collector_takes_and_none_is_lost() -> None:
    keeper = Keeper(time.time, KeeperSettings("gateway", "1", "scheduler"))
    spans = Spans("1", lambda stamp_ns: stamp_ns, keeper.steps)
    keeper.take(PolicyInForce(1, "slai", [("paid", 9.0, 9.0)], otherwise=1.0))
    requests = np.arange(1, REQUESTS + 1)
    for request in requests.tolist():
        keeper.take(began(request))
        keeper.take(let(request))
    for number in range(1, TOKENS + 1):
        # Only the first goes on to the end: a long answer, and many short ones.
        there = requests if number <= 20 else requests[:1]
        keeper.take(step(number, there.tolist(), [number * 100 + 95] * len(there)))
    for request in requests.tolist():
        keeper.take(Ended(request, "finished", "", 20, TOKENS * 100 + 99))
    messages = [
        message for group in in_groups(keeper.batch()) for message in trace_messages(spans.resource_spans(group))
    ]
    assert max(len(body) for body, _ in messages) < GRPC_TAKES_BYTES
    assert max(num_spans for _, num_spans in messages) <= SPANS_OF_A_MESSAGE
    num_tokens = (TOKENS - 1) + (REQUESTS - 1) * 19
    num_of_requests = REQUESTS * 7  # chat, tokenize, admission, queue, prefill, decode, deliver
    assert sum(num_spans for _, num_spans in messages) == num_tokens + num_of_requests + TOKENS


def test_a_decode_says_how_often_it_lost_its_blocks() -> None:
    keeper = Keeper(time.time, KeeperSettings("gateway", "1", "scheduler"))
    spans = Spans("1", lambda stamp_ns: stamp_ns, keeper.steps)
    keeper.take(began(1))
    keeper.take(let(1))
    for number, cause in enumerate((Cause.PIPELINE, Cause.PREEMPTED, Cause.BUDGET, Cause.PREEMPTED), start=1):
        keeper.take(replace(step(number, [1], [number * 100 + 95]), causes=bytes([cause])))
    keeper.take(Ended(1, "finished", "", 4, 999))
    (decode,) = (
        span
        for resource in spans.resource_spans(keeper.batch())
        for span in resource.scope_spans[0].spans
        if span.name == names.DECODE
    )
    attributes = {one.key: one.value.int_value for one in decode.attributes}
    assert attributes[names.NUM_PREEMPTIONS] == 2


def test_a_step_of_two_gateways_is_one_trace_with_a_span_of_each_that_links_to_its_own_requests() -> None:
    made = []
    for gateway, request in (("1", 1), ("2", 2)):
        keeper = Keeper(time.time, KeeperSettings("gateway", gateway, "scheduler"))
        spans = Spans(gateway, lambda stamp_ns: stamp_ns, keeper.steps)
        keeper.take(PolicyInForce(1, "slai", [("paid", 9.0, 9.0)], otherwise=1.0))
        keeper.take(replace(began(request), span_id=bytes([request] * 8)))
        keeper.take(let(request))
        for number in (1, 2):
            keeper.take(step(number, [request], [number * 100 + 95]))
        keeper.take(Ended(request, "finished", "", 2, 999))
        made.append([span for one in spans.resource_spans(keeper.batch()) for span in one.scope_spans[0].spans])
    steps = [[span for span in spans if span.name == names.STEP] for spans in made]
    assert [span.trace_id for span in steps[0]] == [span.trace_id for span in steps[1]]
    assert len({span.span_id for spans in steps for span in spans}) == 4
    for request, (spans, its_steps) in enumerate(zip(made, steps, strict=True), start=1):
        assert {link.span_id for span in its_steps for link in span.links} == {bytes([request] * 8)}
        (token,) = (span for span in spans if span.name == names.TOKEN)
        assert token.links[0].span_id in {span.span_id for span in its_steps}
