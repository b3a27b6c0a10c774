"""Who asks for what, and when: traces read from text, and the published recipe of arrivals.

Owns the accepted trace formats and the recipe (scheduling specification, 8.1). Knows lengths and times; does not know
classes or policies. Randomness comes from the seed alone.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from math import log

import numpy as np

from policies.simulation.synthetic import SYNTHETIC, synthetic
from policies.simulation.trace_request import TraceError, TraceRequest
from policies.simulation.trace_rows import Row, has, table

__all__ = [
    "PAID_SHARE",
    "SYNTHETIC",
    "TraceError",
    "TraceRequest",
    "at_rate",
    "has_arrivals",
    "read_lengths",
    "read_trace",
    "synthetic",
    "with_arrivals",
]

LENGTHS_HEADER = ("num_prefill_tokens", "num_decode_tokens")
TIMED_HEADER = ("arrived_at_s", "client", "prompt_tokens", "output_tokens")
KEYED_HEADER = (*TIMED_HEADER, "key_tokens", "prompt_keys")
AZURE_HEADER = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
AZURE_TENANT = "azure"
PREPARED_REQUESTS = 16_384
PAID_SHARE = 0.05
LONGEST_GAP = 3.0
"""Gaps between arrivals are cut at this many mean gaps, so the true rate is 1.0524 times the nominal one."""


def read_trace(text: str, file: str, *, qps: float | None, seed: int) -> list[TraceRequest]:
    """Requests of a CSV trace, by arrival.

    A file of lengths (`num_prefill_tokens,num_decode_tokens`) gets arrivals at `qps`; a file with arrival times keeps
    them, and may have the columns `key_tokens` and `prompt_keys` (hexadecimal) of `policies.events.Released`, so that
    hits of the prefix cache replay. The Azure LLM inference traces (`TIMESTAMP,ContextTokens,GeneratedTokens`) begin
    with their first request; one that generated nothing counts as one token. Other columns are ignored.

    Raises:
        TraceError: the header or a value is wrong, or `qps` and the kind of file do not go together.
    """
    rows = csv.reader(text.splitlines())
    header = [name.strip() for name in next(rows, [])]
    for timed_header, request_of in TIMED_FORMS:
        if has(header, timed_header):
            if qps is not None:
                raise TraceError(f"{file}: --qps is for traces without arrival times; this one has `{timed_header[0]}`")
            timed = sorted(
                (request_of(row) for row in table(rows, header, timed_header, file)),
                key=lambda request: request.arrived_at_s,
            )
            began_at_s = timed[0].arrived_at_s if timed_header is AZURE_HEADER else 0.0
            return [request._replace(arrived_at_s=request.arrived_at_s - began_at_s) for request in timed]
    if has(header, LENGTHS_HEADER):
        if qps is None:
            raise TraceError(f"{file}: this trace has lengths only: say how many requests arrive a second with --qps")
        return with_arrivals(_lengths_of(rows, header, file), qps=qps, seed=seed)
    raise TraceError(
        f"{file}:1: the header is `{','.join(header)}`; accepted are `{','.join(TIMED_HEADER)}` and"
        f" `{','.join(AZURE_HEADER)}` (arrivals included) and `{','.join(LENGTHS_HEADER)}` (lengths only, with --qps);"
        " more columns may follow"
    )


def has_arrivals(text: str) -> bool:
    """Whether a CSV trace says when its requests came."""
    header = [name.strip() for name in next(csv.reader(text.splitlines()[:1]), [])]
    return any(has(header, timed_header) for timed_header, _ in TIMED_FORMS)


def at_rate(requests: Sequence[TraceRequest], qps: float) -> list[TraceRequest]:
    """The same requests in the same pattern, at another mean rate.

    Raises:
        TraceError: all of them arrive at once, so that there is no rate to change.
    """
    last_s = max(request.arrived_at_s for request in requests)
    if not last_s:
        raise TraceError("all requests of this trace arrive at once: there is no rate to change")
    stretch = len(requests) / last_s / qps
    return [request._replace(arrived_at_s=request.arrived_at_s * stretch) for request in requests]


def read_lengths(text: str, file: str) -> list[tuple[int, int]]:
    """(prompt, output) tokens of each row of a CSV trace of lengths.

    Raises:
        TraceError: the header or a value is wrong.
    """
    rows = csv.reader(text.splitlines())
    header = [name.strip() for name in next(rows, [])]
    if not has(header, LENGTHS_HEADER):
        raise TraceError(f"{file}:1: the header is `{','.join(header)}`; accepted is `{','.join(LENGTHS_HEADER)}`")
    return _lengths_of(rows, header, file)


def with_arrivals(
    lengths: list[tuple[int, int]], *, qps: float, seed: int, paid_share: float = PAID_SHARE
) -> list[TraceRequest]:
    """The published recipe: rows shuffled once, clipped exponential gaps, one in twenty requests of a paid tenant.

    The legacy generators are the recipe's: seed 42 reproduces its order, its gaps (the same at every rate, scaled) and
    its classes. At most 16,384 requests are made.
    """
    shuffle = np.random.RandomState(seed)
    order = shuffle.choice(len(lengths), len(lengths), replace=False)[:PREPARED_REQUESTS]
    uniform = np.random.RandomState([seed]).random_sample(len(order))
    paid = np.random.default_rng(seed).random(len(order)) < paid_share
    requests: list[TraceRequest] = []
    now = 0.0
    for row, draw, is_paid in zip(order.tolist(), uniform.tolist(), paid.tolist(), strict=True):
        now += min(-log(1.0 - draw) / qps, LONGEST_GAP / qps)
        name = "paid" if is_paid else "free"
        requests.append(TraceRequest(now, name, name, *lengths[row]))
    return requests


def _timed(row: Row) -> TraceRequest:
    return TraceRequest(row.seconds(0), row.fields[1], "free", row.tokens(2), row.tokens(3))


def _keyed(row: Row) -> TraceRequest:
    request, key_tokens = _timed(row), row.tokens(4)
    keys = row.keys(5, -(-request.prompt_tokens // key_tokens))
    return request._replace(key_tokens=key_tokens, prompt_keys=keys)


def _lengths_of(rows: Iterator[list[str]], header: list[str], file: str) -> list[tuple[int, int]]:
    return [(row.tokens(0), row.tokens(1)) for row in table(rows, header, LENGTHS_HEADER, file)]


def _azure(row: Row) -> TraceRequest:
    output_tokens = 1 if row.fields[2] == "0" else row.tokens(2)
    return TraceRequest(row.moment(0), AZURE_TENANT, "free", row.tokens(1), output_tokens)


TIMED_FORMS: tuple[tuple[tuple[str, ...], Callable[[Row], TraceRequest]], ...] = (
    (KEYED_HEADER, _keyed),
    (TIMED_HEADER, _timed),
    (AZURE_HEADER, _azure),
)
"""Columns of the traces with arrival times, and how a line is read; the first that fits."""
