"""What the keeper can tell of requests and of how it goes, as JSON: for the console, `fairlead explain` and metrics."""

from itertools import islice
from typing import Any, NamedTuple

import msgspec
import numpy as np

from services.telemetry.keeper.keeper import Keeper
from services.telemetry.keeper.live import running
from services.telemetry.keeper.parts import token_parts
from services.telemetry.keeper.requests import Output
from services.telemetry.keeper.rows import CAUSE, STAMP_COLUMNS, WRITTEN
from services.telemetry.keeper.spans import Written
from services.telemetry.keeper.verdict import TBT, TTFT
from services.telemetry.records import Asked
from services.telemetry.stamps import CAUSES, CHUNK_COLUMNS, FIRST_PARTS, TOKEN_PARTS

NS = 1e9
MOST_RECENT, MOST_MISSES, MOST_RUNNING = 200, 20, 20


class Now(NamedTuple):
    """One moment by both clocks."""

    monotonic_ns: int
    unix_s: float

    def unix_of(self, stamp_ns: int) -> float:
        """When a stamp was, in seconds since 1970."""
        return self.unix_s - (self.monotonic_ns - stamp_ns) / NS


def answer(keeper: Keeper, asked: Asked, now: Now) -> bytes:
    """The answer to a question, JSON; an unknown request's is `null`, as one of another tenant than the asked for."""
    match asked.about:
        case "request":
            one = find(keeper, asked.request)
            known = one is not None and asked.tenant in ("", one.request.began.tenant)
            document: Any = story(one, now) if one is not None and known else None
        case "recent":
            document = _recent(keeper, asked, now, MOST_RECENT)
        case "live":
            open_requests = list(keeper.open.requests.values())
            document = {
                "figures": keeper.live.figures(now.unix_s),
                "num_running": len(open_requests),
                "running": running(open_requests[:MOST_RUNNING], now.monotonic_ns),
                "misses": _recent(keeper, Asked(0, "recent", missed=True), now, MOST_MISSES),
                "dropped": keeper.dropped,
            }
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


def _recent(keeper: Keeper, asked: Asked, now: Now, most: int) -> list[dict[str, Any]]:
    """The newest of those asked for, the newest first."""
    found = (
        one
        for one in reversed(keeper.recent.values())
        if asked.tenant in ("", one.request.began.tenant)
        and asked.slo_class in ("", one.request.slo_class)
        and (one.verdict.missed or not asked.missed)
    )
    return [line(one, now) for one in islice(found, most)]


def line(one: Written, now: Now) -> dict[str, Any]:
    """A request in a list."""
    request, ended = one.request, one.request.ended
    return {
        "id": request.began.answer_id,
        "trace_id": request.began.trace_id.hex(),
        "tenant": request.began.tenant,
        "class": request.slo_class,
        "outcome": "" if ended is None else ended.outcome,
        "code": "" if ended is None else ended.code,
        "ended_unix_s": None if ended is None else now.unix_of(ended.ended_ns),
        "prompt_tokens": request.began.prompt_tokens,
        "output_tokens": sum(len(output.stamps()) for output in request.outputs.values()),
        "streamed": request.began.streamed,
        "ttft_s": one.verdict.ttft_s,
        "longest_gap_s": one.verdict.longest_gap_s,
        "missed": one.verdict.missed,
        "promised": _promised(one),
    }


def _promised(one: Written) -> dict[str, float]:
    """What its class promised when it was released, in seconds."""
    classes = [] if one.policy is None else one.policy.classes
    for name, ttft_s, tbt_s in classes:
        if name == one.request.slo_class:
            return {TTFT: ttft_s, TBT: tbt_s}
    return {}


def story(one: Written, now: Now) -> dict[str, Any]:
    """All of a request: seconds since it was received."""
    request, began, ended = one.request, one.request.began, one.request.ended
    received_ns = began.received_ns
    return {
        **line(one, now),
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
