"""What a gateway tells its keeper: facts with stamps, as they happen.

A record is written by the serving process and read by another one (`keeper`), so that the serving loop only copies
integers. Stamps are `time.monotonic_ns()` of the gateway's host unless a service's clock is named. Owns the records and
their framing: a length of four bytes, little-endian, then msgpack.
"""

import struct
from collections.abc import Iterator

import msgspec

LENGTH = struct.Struct("<I")


class Record(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """Something that happened."""


class PolicyInForce(Record, frozen=True):
    """From here on requests are admitted under this revision."""

    revision: int
    name: str
    classes: list[tuple[str, float, float]]
    """(name, ttft_s, tbt_s)."""
    slo_miss: float = 1.0
    """Share of requests whose tokens get spans: of those that broke a promise,"""
    error: float = 1.0
    """of those that failed,"""
    otherwise: float = 0.01
    """and of the rest."""


class Began(Record, frozen=True):
    """A request was handed to admission."""

    request: int
    answer_id: str
    trace_id: bytes
    """16 bytes, the client's if it sent a traceparent."""
    parent_id: bytes
    """8 bytes, the client's span; empty: none."""
    span_id: bytes
    """8 bytes, of the request's own span."""
    operation: str
    model: str
    tenant: str
    project: str
    prompt_tokens: int
    max_output_tokens: int
    num_choices: int
    received_ns: int
    tokenized_ns: int
    streamed: bool = True
    """Its reader gets tokens as they come; else all of them with the last."""


class Let(Record, frozen=True):
    """Admission released a request."""

    request: int
    slo_class: str
    revision: int
    queued_ns: int
    released_ns: int
    waits_s: dict[str, float] = {}
    """Of the time between the two, by cause (`limits`, `fairness`, `window`)."""
    counter: float = 0.0


class Step(Record, frozen=True):
    """One step's tokens as this gateway got and wrote them; columns as in `services.wire.TokenFrame`."""

    step: int
    executor: int
    revision: int
    sequences: bytes
    finish: bytes
    ready_ns: bytes
    causes: bytes
    """int8 each, into `stamps.CAUSES`."""
    planned_ns: int
    launched_ns: int
    computed_ns: int
    returned_ns: int
    gateway_in_ns: int
    written_ns: bytes
    """int64 each; 0: not yet, a `Written` follows."""
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    chunks: dict[int, bytes] = {}
    """Of sequences whose first token this is: int64 of `stamps.CHUNK_COLUMNS` for each prefill chunk."""
    prefix_hits: list[tuple[int, int]] = []
    budget_use: float = 0.0
    kv_use: float = 0.0
    """Shares, after the step was planned."""
    uncertainty_ns: int = 0
    """How far stamps of other hosts may be off."""
    scheduler_epoch: int = 0
    """Which start of the scheduler it was: the next one counts its steps anew."""


class Written(Record, frozen=True):
    """What was held of these sequences is with the socket now."""

    sequences: list[int]
    written_ns: int


class Ended(Record, frozen=True):
    """A request is over, whatever became of it."""

    request: int
    outcome: str
    code: str
    output_tokens: int
    ended_ns: int
    slow_ns: int = 0
    """How long its reader did not take what was ready."""


class Asked(Record, frozen=True):
    """A question of the gateway's, to be answered."""

    number: int
    about: str
    """`request`, `recent`, `live` or `metrics`."""
    request: str = ""
    """Id, trace or number of one."""
    tenant: str = ""
    """Of this tenant's requests alone; empty: of all."""
    slo_class: str = ""
    missed: bool = False
    """Of those alone that broke a promise."""
    num_unread: int = 0
    """Records that this gateway could not tell, so far."""


class Answered(Record, frozen=True):
    """The keeper's answer."""

    number: int
    document: bytes


AnyRecord = PolicyInForce | Began | Let | Step | Written | Ended | Asked | Answered

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyRecord] = msgspec.msgpack.Decoder(AnyRecord)


def encode(record: Record) -> bytes:
    """A record with its length before it."""
    body = _encoder.encode(record)
    return LENGTH.pack(len(body)) + body


class Reader:
    """Takes bytes as they come, gives whole records."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[AnyRecord]:
        """The records that are complete with this.

        Raises:
            msgspec.MsgspecError: these bytes are no records.
        """
        rest = self._rest
        rest += data
        start = 0
        while len(rest) - start >= LENGTH.size:
            (size,) = LENGTH.unpack_from(rest, start)
            end = start + LENGTH.size + size
            if len(rest) < end:
                break
            yield _decoder.decode(memoryview(rest)[start + LENGTH.size : end])
            start = end
        del rest[:start]
