"""Everything a core may ask for.

A command is a value with a reason: returned, never logged, raised or sent from inside a core. Arrays are numpy, so
that a step of 256 sequences is a handful of objects; `encode` turns any command list into bytes that compare equal
exactly when two runs decided the same.
"""

from collections.abc import Iterable
from enum import IntEnum
from typing import Any, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from policies.admission.limits.items import LimitItem, LimitState

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

NO_BLOCKS: Int32Array = np.empty(0, np.int32)
NO_CAUSES: NDArray[np.int8] = np.empty(0, np.int8)


class FinishReason(IntEnum):
    """Why a sequence ended, as it crosses the wire; 0 is reserved for "goes on"."""

    STOP = 1
    """End-of-sequence token, or a stop string found by the gateway."""
    LENGTH = 2
    CANCELLED = 3
    ERROR = 4


class Command(msgspec.Struct, tag=True, tag_field="command", omit_defaults=True):
    """Something a core wants done."""


class WakeAt(Command):
    """Hand the core a `Woke` at this core time (a later one replaces an earlier one)."""

    at_s: float


# --- admission ---------------------------------------------------------------------------------------------------


class Release(Command):
    """Send a request to the scheduler."""

    request: int
    slo_class: str
    waited_s: float
    reason: str
    limits: tuple[LimitState, ...] = ()
    waits_s: dict[str, float] = {}
    """Of the time it waited, by cause: `limits`, `fairness` (others' turn), `window` (its turn, and no room)."""
    counter: float = 0.0
    """Of the leaf it was charged at, with its prompt."""


class Resume(Command):
    """Send a request in flight to the scheduler again: whoever computed it was lost."""

    request: int
    slo_class: str
    waited_s: float


class Strand(Command):
    """Nobody computes a request in flight; its gateway may send it again for a while."""

    request: int
    attempt: int


class Reserve(Command):
    """Take all of these from the store, or nothing; answered by `Reserved` or `OverLimit`."""

    request: int
    items: tuple[LimitItem, ...]


class Adjust(Command):
    """Something was taken that turned out to be another amount: (item as reserved, actual amount) each."""

    request: int
    items: tuple[tuple[LimitItem, int], ...]


class Queue(Command):
    """A request waits; not terminal."""

    request: int
    position: int
    """Requests expected to be released before it."""
    expected_wait_s: float
    limits: tuple[LimitState, ...] = ()


class Refuse(Command):
    """A terminal answer: the request will not be served."""

    request: int
    code: str
    """`context_length_exceeded`, `queue_full`, `queue_timeout`, `would_be_late`, ... (see services/errors.py)."""
    message: str
    """One sentence naming the limit, what was asked and what to do."""
    retry_after_s: float | None = None
    dimension: str = ""
    """Of the limit that binds; empty: none does."""
    position: int | None = None
    """Requests that wait before it."""
    limits: tuple[LimitState, ...] = ()
    tenant: str = ""


class Counted(Command):
    """Terminal: an invalid request has been counted against its caller's limits; whoever found it so answers it."""

    request: int
    limits: tuple[LimitState, ...] = ()
    tenant: str = ""


class Withdraw(Command):
    """A queued request was cancelled before release: terminal."""

    request: int
    reason: str


class CancelReleased(Command):
    """Pass a cancel on to the scheduler; the terminal command follows when the scheduler reports the end."""

    request: int
    reason: str


class Settle(Command):
    """A released request ended; its charges are final: terminal."""

    request: int
    tenant: str
    prompt_tokens: int
    output_tokens: int
    outcome: str
    project: str = "default"
    key: str = ""
    cached_tokens: int = 0
    """Of the prompt, found in the prefix cache."""


# --- scheduling --------------------------------------------------------------------------------------------------


class StepPlan(msgspec.Struct):
    """One step, as changes only. Rows are in no order that matters: what a row is for is in `stages` and `num_tokens`.

    Arrays over rows: `sequences` int64, `positions` int32 (KV position of the row's first token), `num_tokens` int32,
    `samples` bool (the row's last token samples an output token), `stages` int8 (index of the stage that planned the
    row; the implicit carry-over stage is -1), `num_new_blocks` int32. `new_blocks` int32 is flat, in row order: what is
    appended to the row's table, blocks shared with other sequences included.

    Before the step the blocks `copied` int32 are copied to the blocks `copies` int32, parallel to them: all are read
    before any is written.
    """

    sequences: Int64Array
    positions: Int32Array
    num_tokens: Int32Array
    samples: BoolArray
    stages: NDArray[np.int8]
    num_new_blocks: Int32Array
    new_blocks: Int32Array
    starts: list[int]
    """Sequences the executor must be given (prompt and kept tokens) with this step: first plan, or resumed."""
    released: list[int]
    """Sequences the executor forgets before this step: finished, cancelled or preempted."""
    cached: list[int] = []
    """Parallel to `starts`: tokens that it found in the prefix cache and begins after."""
    copied: Int32Array = NO_BLOCKS
    copies: Int32Array = NO_BLOCKS
    causes: NDArray[np.int8] = NO_CAUSES
    """`policies.scheduling.causes.Cause` of each row's wait; empty: `PIPELINE` for all."""


class StartStep(Command):
    """Run this plan on an executor."""

    executor: int
    step: int
    revision: int
    plan: StepPlan


class Deliver(Command):
    """Results of a step that may reach readers. Rows of ended or cancelled sequences are left out."""

    executor: int
    step: int
    rows: Int32Array
    """Indices into the step's *sampling* rows (rows with `samples`, in plan order)."""
    finish: NDArray[np.int8]
    """Parallel to `rows`: 0 or a `FinishReason`."""


class Forget(Command):
    """Nothing is to run but an executor still holds state of these sequences: drop it."""

    executor: int
    released: list[int]


class Abandon(Command):
    """Treat an executor as dead: let its stream go and whatever it still sends. The core has forgotten it already."""

    executor: int
    reason: str
    """Completes "the executor is given up: "."""


class Finish(Command):
    """All choices of a request are done, whatever the outcome: terminal."""

    request: int
    outcome: str
    """`finished`, `cancelled`, `refused` or `error`."""
    output_tokens: int
    code: str = ""
    """For `refused` and `error`: the code of services/errors.py."""
    message: str = ""


def _encode_array(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return value.tobytes()
    raise TypeError(f"a command holds a {type(value).__name__}, which has no encoding")


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_array)


def encode(commands: Iterable[Command]) -> bytes:
    """Bytes of a command list; equal bytes mean equal decisions."""
    return _encoder.encode(list(commands))


AnyCommand = (
    WakeAt
    | Reserve
    | Adjust
    | Queue
    | Release
    | Resume
    | Strand
    | Refuse
    | Counted
    | Withdraw
    | CancelReleased
    | Settle
    | StartStep
    | Deliver
    | Forget
    | Finish
    | Abandon
)


def _decode_array(kind: Any, value: bytes) -> NDArray[Any]:
    """`kind` is one of the array types above: `NDArray[dtype]`."""
    _, dtype = get_args(kind)
    return np.frombuffer(value, get_args(dtype)[0])


_decoder = msgspec.msgpack.Decoder(list[AnyCommand], dec_hook=_decode_array)


def decode(commands: bytes) -> list[AnyCommand]:
    """The commands that `encode` wrote; their arrays are read-only.

    Raises:
        msgspec.MsgspecError: it did not write these bytes.
    """
    return _decoder.decode(commands)
