"""The messages between the services, and their codec.

Tokens travel columnar: one `TokenFrame` per (step, gateway), integer arrays as little-endian bytes, the step's stamps
once. Every stamp is `time.monotonic_ns()` of the process that took it. Unknown fields are ignored and new fields have
defaults, so that neighbours one version apart understand each other. Never imports torch.
"""

from typing import Annotated, get_args

import msgspec
from msgspec import Meta

from engine.interface import Sampling
from policies.admission.limits.items import LimitState
from policies.events import HeldAtScheduler
from services.wire_handshake import Challenge, Hello, Welcome
from services.wire_operator import MirrorAsked, MirrorEnded, MirrorRecords, MirrorState, Ping, Pong, Report, ReportAsked
from services.wire_parts import (
    Amount,
    Count,
    Id,
    Levels,
    LogprobColumns,
    Measured,
    Message,
    Name,
    Revision,
    Seconds,
    Share,
    Stamp,
    Sum,
    Total,
    Weight,
    Words,
    check_columns,
    num_items,
)
from services.wire_steps import ExecutorReady, ForgetMessage, StepFailed, StepMessage, StepResult

INT32_BYTES, INT64_BYTES = 4, 8
MOST_CHOICES = 2**16


# --- requests: gateway -> admission -> scheduler -----------------------------------------------------------------


class Submit(Message, tag="submit"):
    """A request with everything the later services need of it; tokens are int32 little-endian."""

    request: Id
    """Unique over all gateways; owns sequence ids `request .. request + num_choices - 1`."""
    tenant: Name
    tier: Name
    prompt: bytes
    max_output_tokens: Count
    sampling: Annotated[list[Sampling], Meta(min_length=1, max_length=MOST_CHOICES)]
    """One for each choice (they differ in their seed)."""
    weight: Weight = 1.0
    project: Name = "default"
    key: Name = ""
    service_tier: Name | None = None
    allowed_classes: tuple[Name, ...] = ()
    received_ns: Stamp = 0
    tokenized_ns: Stamp = 0
    traceparent: Name = ""
    grammar: str = ""
    """What every choice must keep to, as `engine.grammar.lark` writes it; empty: anything."""
    shares_prefix: bool = True
    """False: every token is computed for this request, and nobody else may use what was (all its hidden states are
    wanted)."""
    pooling: Name = ""
    """An embedding is wanted (`engine.interface.POOLINGS`): one choice, whose only token is neither shown nor paid."""
    declared: bool = True
    """The client said how many output tokens it wants at most."""
    resent: bool = False
    """It was sent before, and whoever had it was lost; who has it still takes no notice."""
    attempt: Count = 0
    """How often the scheduler that had it was lost."""
    scheduler_epoch: Id = 0
    """Which start of the scheduler is to go on with it; 0: none had it."""
    outputs: list[bytes] = []
    """Of each choice, what its client has of it, int32; empty: nothing. What follows is made."""
    ended: list[Count] = []
    """Choices that have ended with that, by number."""
    cached_tokens: Count = 0
    """Of the prompt, as whoever had it before found in the prefix cache."""

    def __post_init__(self) -> None:
        if not num_items("prompt", self.prompt, INT32_BYTES):
            raise ValueError("`prompt` is empty")


class InvalidRequest(Message, tag="invalid"):
    """Gateway -> admission: this request will be answered with a 400 and counts; answered by `Admitted` (of no class)
    or `Refused`.
    """

    request: Id
    tenant: Name
    project: Name = "default"
    key: Name = ""
    tier: Name = ""


class Dispatch(Message, tag="dispatch"):
    """A released request, admission -> scheduler."""

    submit: Submit
    slo_class: Name
    waited_s: Seconds
    gateway: Count
    """Upper 32 bits of its request ids: where its tokens go."""
    queued_ns: Stamp = 0
    released_ns: Stamp = 0


class Cancel(Message, tag="cancel"):
    """A request must end. Idempotent; sent to admission and to the scheduler, whoever has it acts."""

    request: Id
    reason: Name = "client_gone"


class Stopped(Message, tag="stopped"):
    """Gateway -> scheduler: a stop string ended a sequence after this many output tokens."""

    sequence: Id
    output_tokens: Count


class Refused(Message, tag="refused"):
    """Admission -> gateway: the terminal answer of a request that is not served."""

    request: Id
    code: Name
    message: Words
    retry_after_s: Seconds | None = None
    dimension: Name = ""
    """Of the limit that binds; empty: none does."""
    position: Count | None = None
    """Requests that wait before it."""
    limits: tuple[LimitState, ...] = ()


class Queued(Message, tag="queued"):
    """Admission -> gateway: it waits."""

    request: Id
    position: Count
    """Requests expected to be released before it."""
    expected_wait_s: Seconds
    limits: tuple[LimitState, ...] = ()


class Admitted(Message, tag="admitted"):
    """Admission -> gateway: released under this class and revision."""

    request: Id
    slo_class: Name
    revision: Id
    queued_ns: Stamp
    released_ns: Stamp
    scheduler_epoch: Id = 0
    """Which start of the scheduler it was released to; 0: not said."""
    limits: tuple[LimitState, ...] = ()
    waits_s: dict[Name, Seconds] = {}
    """Of the time it waited, by cause: `limits`, `fairness` (others' turn), `window` (its turn, and no room)."""
    counter: Amount = 0.0
    """Its tenant's in the fair queue, at its release."""
    attempt: Count = 0
    """As in `Submit`."""


# --- tokens and usage: scheduler -> gateway, admission -----------------------------------------------------------


class TokenFrame(Message, tag="tokens"):
    """One step's tokens for one gateway."""

    step: Id
    executor: Id
    revision: Id
    sequences: bytes
    """int64 each."""
    tokens: bytes
    """int32 each."""
    finish: bytes
    """int8 each: 0 or a FinishReason."""
    ready_ns: bytes
    """int64 each: when the token could first have been planned."""
    planned_ns: Stamp
    launched_ns: Stamp
    computed_ns: Stamp
    returned_ns: Stamp
    num_prefill_tokens: Count = 0
    num_decode_tokens: Count = 0
    logprobs: LogprobColumns | None = None
    """None: no row asked for any."""
    prefix_hits: list[tuple[Id, Count]] = []
    """(request, prompt tokens that it found in the prefix cache), with the first token of its first choice."""
    vectors: dict[Id, bytes] = {}
    """Embeddings of these sequences, float32 little-endian."""
    causes: bytes = b""
    """int8 each: `policies.scheduling.causes.Cause` of what the token waited for; empty: `PIPELINE` for all."""
    chunks: dict[Id, bytes] = {}
    """Of sequences whose first token this is, the chunks of their prompt: int64 of `stamps.CHUNK_COLUMNS` each."""
    budget_use: Share = 0.0
    """Share of the token budget that the step was planned with."""
    kv_use: Share = 0.0
    """Share of the executor's KV blocks that were held when it was planned."""
    uncertainty_ns: Stamp = 0
    """How far the executor's stamps may be off the scheduler's clock, on which all stamps are."""

    def __post_init__(self) -> None:
        num_rows = num_items("sequences", self.sequences, INT64_BYTES)
        columns = {"tokens": (self.tokens, INT32_BYTES), "finish": (self.finish, 1)}
        columns["ready_ns"] = (self.ready_ns, INT64_BYTES)
        if self.causes:
            columns["causes"] = (self.causes, 1)
        check_columns("a frame of tokens", num_rows, columns)


class RequestEnded(Message, tag="ended"):
    """Scheduler -> gateway and admission: terminal for a released request. Admission -> gateway: nobody computes it;
    it may be sent again. Gateway -> admission, when the scheduler is lost: its client has all of it.
    """

    request: Id
    outcome: Name
    output_tokens: Sum
    """Over all of its choices."""
    code: Name = ""
    message: Words = ""
    measured: Measured | None = None
    """None: not said, as by an earlier version and to admission."""
    number: Id = 0
    """To admission: counts the ends since the scheduler's start; 0: not said."""
    attempt: Count = 0
    """As in `Submit`: which one has ended."""
    cached_tokens: Count = 0
    """Of a gateway: prompt tokens that were found in the prefix cache."""


class EndsKept(Message, tag="ends_kept"):
    """Admission -> scheduler: the ends up to this number are settled for good and need not be told again. The first on
    a connection asks for `Holds`.
    """

    number: Id


class Holds(Message, tag="holds"):
    """Scheduler -> admission that connected: what it has, and what has ended without being acknowledged; those ends
    follow, then the capacity.
    """

    requests: list[HeldAtScheduler]


class Usage(Message, tag="usage"):
    """Scheduler -> admission, once per step: one output token for each sequence id (int64)."""

    sequences: bytes
    prefix_hits: list[tuple[Id, Count]] = []
    """As in `TokenFrame`, for refunds."""

    def __post_init__(self) -> None:
        num_items("sequences", self.sequences, INT64_BYTES)


class Capacity(Message, tag="capacity"):
    """Scheduler -> admission and gateways, whenever it changes."""

    num_executors: Count
    kv_tokens: Total
    max_sequence_tokens: Count
    counts_ends: bool = False
    """Of a scheduler: it keeps ends until they are acknowledged, and answers the first `EndsKept` with `Holds`."""
    levels: Levels | None = None
    """To gateways, once a second. None: this message says nothing of them."""
    resumes: bool = False
    """Whoever says so takes requests that were sent before (`Submit.resent`)."""
    trouble: str = ""
    """Why the executor that went last did; empty: one came after it."""


# --- policy revisions: admission -> scheduler, gateways ----------------------------------------------------------


class PolicyPrepare(Message, tag="policy_prepare"):
    """Validate and compile this revision; do not use it yet."""

    revision: Revision
    document: bytes


class PolicyPrepared(Message, tag="policy_prepared"):
    """The answer; `error` is empty when ready."""

    revision: Id
    error: Words = ""


class PolicyCommit(Message, tag="policy_commit"):
    """Use the prepared revision from the next decision on."""

    revision: Id


class PolicyAbort(Message, tag="policy_abort"):
    """Forget the prepared revision."""

    revision: Id


class PolicyNow(Message, tag="policy_now"):
    """Admission -> a service that joins: the revision in force, prepared and committed at once."""

    revision: Revision
    document: bytes


class PolicyStatus(Message, tag="policy_status"):
    """Admission -> gateways: what became of the last save of the policy file."""

    revision: Id
    """The revision in force."""
    outcome: Name
    """`applied` or `rejected`."""
    error: Words = ""


AnyMessage = (
    Challenge
    | Hello
    | Welcome
    | Ping
    | Pong
    | Submit
    | Dispatch
    | Cancel
    | Stopped
    | InvalidRequest
    | Refused
    | Queued
    | Admitted
    | TokenFrame
    | RequestEnded
    | EndsKept
    | Holds
    | ReportAsked
    | Report
    | Usage
    | Capacity
    | ExecutorReady
    | StepMessage
    | ForgetMessage
    | StepResult
    | StepFailed
    | PolicyPrepare
    | PolicyPrepared
    | PolicyCommit
    | PolicyAbort
    | PolicyNow
    | PolicyStatus
    | MirrorAsked
    | MirrorState
    | MirrorRecords
    | MirrorEnded
)

encoder = msgspec.msgpack.Encoder()
decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


class Kind(msgspec.Struct):
    """What a message says it is, whatever else is in it."""

    t: str


kind_decoder = msgspec.msgpack.Decoder(Kind)
KINDS = frozenset(str(kind.__struct_config__.tag) for kind in get_args(AnyMessage))
