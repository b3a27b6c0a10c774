"""What the keeper can tell of requests and of how it goes, as JSON: for the console, `fairlead explain` and metrics."""

from typing import Any

import msgspec
import numpy as np

from services.telemetry.keeper.keeper import Keeper
from services.telemetry.keeper.parts import token_parts
from services.telemetry.keeper.requests import CAUSE, STAMP_COLUMNS, WRITTEN, Output
from services.telemetry.keeper.spans import Written
from services.telemetry.records import Asked
from services.telemetry.stamps import CAUSES, CHUNK_COLUMNS, FIRST_PARTS, TOKEN_PARTS

NS = 1e9
MOST_RECENT = 200


def answer(keeper: Keeper, asked: Asked) -> bytes:
    """The answer to a question, JSON; an unknown request's is `null`."""
    match asked.about:
        case "request":
            one = find(keeper, asked.request)
            document: Any = None if one is None else story(one)
        case "recent":
            document = [line(one) for one in list(keeper.recent.values())[-MOST_RECENT:][::-1]]
        case "metrics":
            return msgspec.msgpack.encode(keeper.registry.families())
        case _:
            document = None
    return msgspec.json.encode(document)


def find(keeper: Keeper, name: str) -> Written | None:
    """A recent request by the id of its answer, its trace or its number."""
    if name in keeper.recent:
        return keeper.recent[name]
    for one in reversed(keeper.recent.values()):
        if name in (one.request.began.trace_id.hex(), str(one.request.began.request)):
            return one
    return None


def line(one: Written) -> dict[str, Any]:
    """A request in a list."""
    request, ended = one.request, one.request.ended
    return {
        "id": request.began.answer_id,
        "trace_id": request.began.trace_id.hex(),
        "tenant": request.began.tenant,
        "class": request.slo_class,
        "outcome": "" if ended is None else ended.outcome,
        "code": "" if ended is None else ended.code,
        "ended_ago_ns": 0 if ended is None else ended.ended_ns,
        "prompt_tokens": request.began.prompt_tokens,
        "output_tokens": sum(len(output.stamps()) for output in request.outputs.values()),
        "ttft_s": one.verdict.ttft_s,
        "longest_gap_s": one.verdict.longest_gap_s,
        "missed": one.verdict.missed,
    }


def story(one: Written) -> dict[str, Any]:
    """All of a request: seconds since it was received."""
    request, began, ended = one.request, one.request.began, one.request.ended
    received_ns = began.received_ns
    return {
        **line(one),
        "operation": began.operation,
        "model": began.model,
        "project": began.project,
        "max_output_tokens": began.max_output_tokens,
        "prefix_hit_tokens": request.prefix_hit_tokens,
        "revision": None if request.let is None else request.let.revision,
        "policy": "" if one.policy is None else one.policy.name,
        "promises": [] if one.policy is None else one.policy.classes,
        "waits_s": {} if request.let is None else request.let.waits_s,
        "counter": None if request.let is None else request.let.counter,
        "total_s": None if ended is None else (ended.ended_ns - received_ns) / NS,
        "slow_reader_s": 0.0 if ended is None else ended.slow_ns / NS,
        "first": dict(zip(FIRST_PARTS, (part / NS for part in one.verdict.first_parts), strict=False)),
        "choices": [_choice(output, received_ns) for output in request.outputs.values()],
    }


def _choice(output: Output, received_ns: int) -> dict[str, Any]:
    stamps = output.stamps()
    before = stamps[:-1, WRITTEN]
    parts = token_parts(before, stamps[1:, : WRITTEN + 1]) / NS
    step = STAMP_COLUMNS.index("step")
    return {
        "parts": TOKEN_PARTS,
        "chunks": [
            {
                "step": chunk[CHUNK_COLUMNS.index("step")],
                "tokens": chunk[CHUNK_COLUMNS.index("num_tokens")],
                "planned_s": (chunk[CHUNK_COLUMNS.index("planned")] - received_ns) / NS,
                "computed_s": (chunk[CHUNK_COLUMNS.index("computed")] - received_ns) / NS,
            }
            for chunk in output.chunks.tolist()
        ],
        "written_s": ((stamps[:, WRITTEN] - received_ns) / NS).tolist(),
        "steps": stamps[:, step].tolist(),
        "causes": [CAUSES[cause] for cause in np.clip(stamps[:, CAUSE], 0, len(CAUSES) - 1).tolist()],
        "token_parts_s": parts.tolist(),  # of each token after the first
    }
