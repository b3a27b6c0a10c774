"""What the keeper can tell of requests and of how it goes: for the console, `fairlead explain` and metrics.

What a keeper knows by itself is `own`: other keepers ask for that. What its gateway is answered is `together`: of all
gateways that were heard, with the names of those that were not.
"""

from collections import Counter
from itertools import islice
from typing import Any, NamedTuple

import msgspec
import numpy as np

from services.telemetry.keeper.keeper import Keeper
from services.telemetry.keeper.live import Sums, figures, running
from services.telemetry.keeper.parts import token_parts
from services.telemetry.keeper.requests import Output
from services.telemetry.keeper.rows import CAUSE, STAMP_COLUMNS, WRITTEN
from services.telemetry.keeper.spans import Written
from services.telemetry.keeper.verdict import TBT, TTFT
from services.telemetry.records import Asked
from services.telemetry.stamps import CAUSES, CHUNK_COLUMNS, FIRST_PARTS, TOKEN_PARTS

NS = 1e9
MOST_RECENT, MOST_MISSES, MOST_RUNNING = 200, 20, 20
UNREADABLE = "answers as another version does"


class Now(NamedTuple):
    """One moment by both clocks."""

    monotonic_ns: int
    unix_s: float

    def unix_of(self, stamp_ns: int) -> float:
        """When a stamp was, in seconds since 1970."""
        return self.unix_s - (self.monotonic_ns - stamp_ns) / NS


class Heard(NamedTuple):
    """What other gateways' keepers said to a question."""

    answers: list[tuple[str, bytes]]
    """Of which gateway, and as its `own` made it."""
    silent: dict[str, str]
    """Gateways of which nothing is known, and why."""


ALONE = Heard([], {})


class Lately(msgspec.Struct):
    """How it goes at one gateway."""

    sums: Sums
    num_running: int = 0
    running: list[dict[str, Any]] = []
    misses: list[dict[str, Any]] = []
    dropped: dict[str, int] = {}


def own(keeper: Keeper, asked: Asked, now: Now) -> bytes:
    """What this keeper knows: a story, or `null` for an unknown request as for one of another tenant than the asked
    for; a list; or `Lately`. All JSON but the metrics.
    """
    match asked.about:
        case "request":
            one = find(keeper, asked.request, asked.tenant)
            return b"null" if one is None else msgspec.json.encode(story(keeper, one, now))
        case "recent":
            return msgspec.json.encode(_recent(keeper, asked, now, MOST_RECENT))
        case "live":
            going_on = keeper.running
            return msgspec.json.encode(
                Lately(
                    keeper.live.sums(now.unix_s),
                    len(going_on),
                    running(going_on[:MOST_RUNNING], now.monotonic_ns),
                    _recent(keeper, Asked(0, "recent", missed=True), now, MOST_MISSES),
                    {**keeper.dropped, "unread_records": keeper.num_unread},
                )
            )
        case "metrics":
            return msgspec.msgpack.encode(keeper.registry.families())
        case _:
            return b"null"


def together(asked: Asked, mine: bytes, heard: Heard = ALONE) -> bytes:
    """The answer for this keeper's gateway: JSON, in which `silent` says what is missing, or metrics."""
    silent = dict(heard.silent)
    match asked.about:
        case "request":
            stories = _read(mine, heard, silent, _Ended | None)
            # Several requests may have one trace.
            newest = max(stories, key=lambda each: 0.0 if each[0] is None else each[0].ended_unix_s)
            document: Any = {"story": msgspec.Raw(newest[1])}
        case "recent":
            lists = _read(mine, heard, silent, list[dict[str, Any]])
            document = {"requests": _newest([each for each, _ in lists], MOST_RECENT)}
        case "live":
            document = _lately([each for each, _ in _read(mine, heard, silent, Lately)])
        case _:
            return mine
    return msgspec.json.encode({**document, "silent": silent})


class _Ended(msgspec.Struct):
    """Of a story, what tells the newest."""

    ended_unix_s: float


def _read(mine: bytes, heard: Heard, silent: dict[str, str], kind: Any) -> list[tuple[Any, bytes]]:
    """Our answer and the others', each with its bytes; whose cannot be read is with the silent."""
    read = [(msgspec.json.decode(mine, type=kind), mine)]
    for gateway, answer in heard.answers:
        try:
            read.append((msgspec.json.decode(answer, type=kind), answer))
        except msgspec.MsgspecError:
            silent[gateway] = UNREADABLE
    return read


def _lately(of_gateways: list[Lately]) -> dict[str, Any]:
    dropped: Counter[str] = Counter()
    for each in of_gateways:
        dropped.update(each.dropped)
    oldest = sorted((line for each in of_gateways for line in each.running), key=lambda line: -line["age_s"])
    return {
        "figures": figures([each.sums for each in of_gateways]),
        "num_running": sum(each.num_running for each in of_gateways),
        "running": oldest[:MOST_RUNNING],
        "misses": _newest([each.misses for each in of_gateways], MOST_MISSES),
        "dropped": dropped,
    }


def _newest(lists: list[list[dict[str, Any]]], most: int) -> list[dict[str, Any]]:
    """Of lists that begin with the newest, as many of all."""
    return sorted((line for each in lists for line in each), key=lambda line: -line["ended_unix_s"])[:most]


def find(keeper: Keeper, name: str, tenant: str) -> Written | None:
    """A tenant's recent request by the id of its answer, its trace or its number; anybody's for no tenant. Clients
    choose the ids of traces, so that others may have the same.
    """
    named = keeper.recent.get(name)
    if named is not None and tenant in ("", named.request.began.tenant):
        return named
    for one in reversed(keeper.recent.values()):
        if tenant in ("", one.request.began.tenant) and name in (
            one.request.began.trace_id.hex(),
            str(one.request.began.request),
        ):
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
    return [line(keeper, one, now) for one in islice(found, most)]


def line(keeper: Keeper, one: Written, now: Now) -> dict[str, Any]:
    """A request in a list."""
    request, ended = one.request, one.request.ended
    return {
        "id": request.began.answer_id,
        "trace_id": request.began.trace_id.hex(),
        "gateway": keeper.gateway,
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


def story(keeper: Keeper, one: Written, now: Now) -> dict[str, Any]:
    """All of a request: seconds since it was received."""
    request, began, ended = one.request, one.request.began, one.request.ended
    received_ns = began.received_ns
    return {
        **line(keeper, one, now),
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
