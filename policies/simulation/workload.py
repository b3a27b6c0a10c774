"""Who asks for what, and when: traces read from text, and synthetic ones.

Owns the accepted trace formats and the published recipe of arrivals (scheduling specification, 8.1). Knows lengths and
times; does not know classes or policies. Randomness comes from the seed alone.
"""

import csv
from collections.abc import Iterator
from hashlib import blake2b
from math import inf, log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from policies.scheduling.prefixes import KEY_BYTES

LENGTHS_HEADER = ("num_prefill_tokens", "num_decode_tokens")
TIMED_HEADER = ("arrived_at_s", "client", "prompt_tokens", "output_tokens")
KEYED_HEADER = (*TIMED_HEADER, "key_tokens", "prompt_keys")
PREPARED_REQUESTS = 16_384
KEY_TOKENS = 16
"""Of synthetic prompts."""
PAID_SHARE = 0.05
LONGEST_GAP = 3.0
"""Gaps between arrivals are cut at this many mean gaps, so the true rate is 1.0524 times the nominal one."""


class TraceError(Exception):
    """A trace that cannot be used; the sentence names the file, the line and what is accepted."""


class TraceRequest(NamedTuple):
    """One request of a workload."""

    arrived_at_s: float
    tenant: str
    tier: str
    prompt_tokens: int
    output_tokens: int
    """Until it ends by itself."""
    key_tokens: int = 0
    prompt_keys: bytes = b""
    """What its prompt has in common with others; both as in `policies.events.Released`."""
    max_output_tokens: int | None = None
    """What it asks for at most; None: just what it will get, as in the published experiments."""
    weight: float = 1.0
    service_tier: str | None = None
    allowed_classes: tuple[str, ...] = ()
    """These three as in `policies.events.Arrived`."""

    @property
    def declared_tokens(self) -> int:
        """Output tokens that a policy must reckon with."""
        return self.output_tokens if self.max_output_tokens is None else self.max_output_tokens


class Load(NamedTuple):
    """One tenant of a synthetic workload: Poisson arrivals, lengths log-normal around their medians."""

    tenant: str
    tier: str
    rate: float
    """Requests per second."""
    prompt_tokens: int
    """Median."""
    output_tokens: int
    """Median."""
    spread: float
    """Standard deviation of the logarithm; 0: every request is the same."""
    shared_tokens: int = 0
    """Tokens that all its prompts begin with, before the median above."""


SYNTHETIC: dict[str, tuple[Load, ...]] = {
    "chat": (
        Load("acme", "paid", 0.2, 400, 200, 0.8),
        Load("globex", "free", 0.5, 800, 250, 0.8),
        Load("initech", "free", 0.3, 1500, 150, 0.8),
    ),
    "overload": (Load("light", "free", 1.5, 256, 256, 0.0), Load("heavy", "free", 3.0, 256, 256, 0.0)),
    "mixed_lengths": (Load("short", "free", 2.0, 64, 64, 0.3), Load("long", "free", 0.3, 2048, 512, 0.3)),
    "shared_prefixes": (
        Load("acme", "paid", 0.5, 100, 100, 0.8, shared_tokens=1000),
        Load("globex", "free", 1.0, 200, 150, 0.8, shared_tokens=300),
    ),
}
"""Workloads that need no file. `overload` is the two-tenant one of the VTC paper (figure 3)."""


def read_trace(text: str, file: str, *, qps: float | None, seed: int) -> list[TraceRequest]:
    """Requests of a CSV trace, by arrival.

    A file of lengths (`num_prefill_tokens,num_decode_tokens`) gets arrivals at `qps`; a file with arrival times keeps
    them, and may have the columns `key_tokens` and `prompt_keys` (hexadecimal) of `policies.events.Released`, so that
    hits of the prefix cache replay. Other columns are ignored.

    Raises:
        TraceError: the header or a value is wrong, or `qps` and the kind of file do not go together.
    """
    rows = csv.reader(text.splitlines())
    header = [name.strip() for name in next(rows, [])]
    if _has(header, TIMED_HEADER):
        if qps is not None:
            raise TraceError(f"{file}: --qps is for traces without arrival times; this one has `arrived_at_s`")
        if _has(header, KEYED_HEADER):
            timed = [_keyed(row) for row in _table(rows, header, KEYED_HEADER, file)]
        else:
            timed = [_timed(row) for row in _table(rows, header, TIMED_HEADER, file)]
        return sorted(timed, key=lambda request: request.arrived_at_s)
    if _has(header, LENGTHS_HEADER):
        if qps is None:
            raise TraceError(f"{file}: this trace has lengths only: say how many requests arrive a second with --qps")
        return with_arrivals(_lengths_of(rows, header, file), qps=qps, seed=seed)
    raise TraceError(
        f"{file}:1: the header is `{','.join(header)}`; accepted are `{','.join(TIMED_HEADER)}` (arrivals included)"
        f" and `{','.join(LENGTHS_HEADER)}` (lengths only, with --qps); more columns may follow"
    )


def read_lengths(text: str, file: str) -> list[tuple[int, int]]:
    """(prompt, output) tokens of each row of a CSV trace of lengths.

    Raises:
        TraceError: the header or a value is wrong.
    """
    rows = csv.reader(text.splitlines())
    header = [name.strip() for name in next(rows, [])]
    if not _has(header, LENGTHS_HEADER):
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


def synthetic(
    name: str, *, qps: float | None, duration_s: float, seed: int, max_sequence_tokens: int
) -> list[TraceRequest]:
    """Requests of a named synthetic workload over `duration_s` seconds; `qps` scales all its tenants together.

    Raises:
        TraceError: there is no such workload.
    """
    loads = SYNTHETIC.get(name)
    if loads is None:
        raise TraceError(f"synthetic:{name}: there is no such workload; there are {', '.join(SYNTHETIC)}")
    scale = 1.0 if qps is None else qps / sum(load.rate for load in loads)
    generator = np.random.default_rng(seed)
    requests = [
        request for load in loads for request in _poisson(load, scale, duration_s, generator, max_sequence_tokens)
    ]
    return sorted(requests, key=lambda request: (request.arrived_at_s, request.tenant))


def _poisson(
    load: Load, scale: float, duration_s: float, generator: np.random.Generator, max_sequence_tokens: int
) -> Iterator[TraceRequest]:
    count = int(generator.poisson(load.rate * scale * duration_s))
    arrivals = np.sort(generator.random(count) * duration_s)
    longest = max_sequence_tokens * 3 // 4
    shared = min(load.shared_tokens, longest // 2)
    prompts = _lengths(load.prompt_tokens, load.spread, count, generator, longest - shared) + shared
    outputs = _lengths(load.output_tokens, load.spread, count, generator, max_sequence_tokens // 4)
    rows = zip(arrivals.tolist(), prompts.tolist(), outputs.tolist(), strict=True)
    for number, (arrived_at_s, prompt, output) in enumerate(rows):
        keys = (KEY_TOKENS, _keys(load.tenant, shared, number, prompt)) if shared else (0, b"")
        yield TraceRequest(arrived_at_s, load.tenant, load.tier, prompt, output, *keys)


def _keys(tenant: str, shared_tokens: int, number: int, prompt_tokens: int) -> bytes:
    """Keys of a prompt that begins like its tenant's others and goes on in its own way."""
    ends = [*range(KEY_TOKENS, prompt_tokens, KEY_TOKENS), prompt_tokens]
    names = [f"{tenant} {end} {'' if end <= shared_tokens else number}" for end in ends]
    return b"".join(blake2b(name.encode(), digest_size=KEY_BYTES).digest() for name in names)


def _lengths(median: int, spread: float, count: int, generator: np.random.Generator, longest: int) -> NDArray[np.int64]:
    drawn = median * np.exp(spread * generator.standard_normal(count))
    lengths: NDArray[np.int64] = np.clip(np.rint(drawn), 1, longest).astype(np.int64)
    return lengths


class _Row(NamedTuple):
    """The wanted fields of a line, and where it stands."""

    fields: list[str]
    names: tuple[str, ...]
    place: str

    def tokens(self, column: int) -> int:
        """A count of tokens.

        Raises:
            TraceError: it is not a whole number above 0.
        """
        try:
            value = int(self.fields[column])
        except ValueError:
            value = 0
        if value < 1:
            raise self.error(column, "a whole number of tokens, at least 1")
        return value

    def seconds(self, column: int) -> float:
        """A time since the trace's start.

        Raises:
            TraceError: it is not a number from 0 on.
        """
        try:
            value = float(self.fields[column])
        except ValueError:
            value = -1.0
        if not 0.0 <= value < inf:
            raise self.error(column, "seconds since the trace's start, 0 or more")
        return value

    def keys(self, column: int, num_keys: int) -> bytes:
        """That many keys.

        Raises:
            TraceError: it is not hexadecimal, or has another length.
        """
        try:
            value = bytes.fromhex(self.fields[column])
        except ValueError:
            value = b""
        if len(value) != num_keys * KEY_BYTES:
            raise self.error(column, f"{num_keys * KEY_BYTES} bytes in hexadecimal, {KEY_BYTES} for each key")
        return value

    def error(self, column: int, wanted: str) -> TraceError:
        """What is wrong with a field."""
        return TraceError(f"{self.place}: {self.names[column]} is `{self.fields[column]}`; it must be {wanted}")


def _lengths_of(rows: Iterator[list[str]], header: list[str], file: str) -> list[tuple[int, int]]:
    return [(row.tokens(0), row.tokens(1)) for row in _table(rows, header, LENGTHS_HEADER, file)]


def _timed(row: _Row) -> TraceRequest:
    return TraceRequest(row.seconds(0), row.fields[1], "free", row.tokens(2), row.tokens(3))


def _keyed(row: _Row) -> TraceRequest:
    request, key_tokens = _timed(row), row.tokens(4)
    keys = row.keys(5, -(-request.prompt_tokens // key_tokens))
    return request._replace(key_tokens=key_tokens, prompt_keys=keys)


def _has(header: list[str], names: tuple[str, ...]) -> bool:
    return all(name in header for name in names)


def _table(rows: Iterator[list[str]], header: list[str], names: tuple[str, ...], file: str) -> Iterator[_Row]:
    columns = [header.index(name) for name in names]
    found = False
    for line, row in enumerate(rows, start=2):
        if not row:
            continue
        found = True
        if len(row) != len(header):
            raise TraceError(f"{file}:{line}: {len(row)} fields; the header has {len(header)}")
        yield _Row([row[column].strip() for column in columns], names, f"{file}:{line}")
    if not found:
        raise TraceError(f"{file}: there is no request in this trace")
