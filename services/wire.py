"""The messages between the services, and their codec.

Tokens travel columnar: one `TokenFrame` per (step, gateway), integer arrays as little-endian bytes, the step's stamps
once. Every stamp is `time.monotonic_ns()` of the process that took it. Unknown fields are ignored and new fields have
defaults, so that neighbours one version apart understand each other. Never imports torch.
"""

import msgspec

from engine.interface import EngineInfo, Sampling
from policies.admission.limits.items import LimitState
from policies.events import HeldAtScheduler
from services.wire_operator import MirrorAsked, MirrorEnded, MirrorRecords, MirrorState, Ping, Pong, Report, ReportAsked
from services.wire_parts import Levels, LogprobColumns, Measured, Message
from services.wire_steps import ExecutorReady, ForgetMessage, StepFailed, StepMessage, StepResult

PROTOCOL = 2
"""Raised when a neighbour must know of the other what it does: 2 is pinged each second, answers, and pings itself."""
OLDEST_PROTOCOL = 1
"""One version back is spoken, too; `framing` says how two neighbours agree."""


# --- handshake (transport.py) ------------------------------------------------------------------------------------


class Challenge(Message, tag="challenge"):
    """The listener's first frame: prove that you know the secret."""

    nonce: bytes
    """Its end says what the listener speaks."""
    protocol: int = 1
    """Neighbours of protocol 1 accept no other number; later ones look at the nonce."""


class Hello(Message, tag="hello"):
    """The connector's answer."""

    protocol: int
    """The newest that both speak: what is spoken from here on."""
    service: str
    instance: str
    epoch: int
    """Grows with every start of the instance; frames of an older epoch are dropped."""
    nonce: bytes
    proof: bytes
    """HMAC-SHA256(secret, b"connect" + challenge nonce + own nonce + service/instance/epoch)."""


class Welcome(Message, tag="welcome"):
    """The listener's proof in return; from here on frames are messages."""

    service: str
    instance: str
    epoch: int
    proof: bytes


# --- requests: gateway -> admission -> scheduler -----------------------------------------------------------------


class Submit(Message, tag="submit"):
    """A request with everything the later services need of it; tokens are int32 little-endian."""

    request: int
    """Unique over all gateways; owns sequence ids `request .. request + num_choices - 1`."""
    tenant: str
    tier: str
    prompt: bytes
    max_output_tokens: int
    sampling: list[Sampling]
    """One for each choice (they differ in their seed)."""
    weight: float = 1.0
    project: str = "default"
    key: str = ""
    service_tier: str | None = None
    allowed_classes: tuple[str, ...] = ()
    received_ns: int = 0
    tokenized_ns: int = 0
    traceparent: str = ""
    grammar: str = ""
    """What every choice must keep to, as `engine.grammar.lark` writes it; empty: anything."""
    shares_prefix: bool = True
    """False: every token is computed for this request, and nobody else may use what was (all its hidden states are
    wanted)."""
    pooling: str = ""
    """An embedding is wanted (`engine.interface.POOLINGS`): one choice, whose only token is neither shown nor paid."""
    declared: bool = True
    """The client said how many output tokens it wants at most."""
    resent: bool = False
    """It was sent before, and whoever had it was lost; who has it still takes no notice."""
    attempt: int = 0
    """How often the scheduler that had it was lost."""
    scheduler_epoch: int = 0
    """Which start of the scheduler is to go on with it; 0: none had it."""
    outputs: list[bytes] = []
    """Of each choice, what its client has of it, int32; empty: nothing. What follows is made."""
    ended: list[int] = []
    """Choices that have ended with that, by number."""


class InvalidRequest(Message, tag="invalid"):
    """Gateway -> admission: this request will be answered with a 400 and counts; answered by `Admitted` (of no class)
    or `Refused`.
    """

    request: int
    tenant: str
    project: str = "default"
    key: str = ""
    tier: str = ""


class Dispatch(Message, tag="dispatch"):
    """A released request, admission -> scheduler."""

    submit: Submit
    slo_class: str
    waited_s: float
    gateway: int
    """Upper 32 bits of its request ids: where its tokens go."""
    queued_ns: int = 0
    released_ns: int = 0


class Cancel(Message, tag="cancel"):
    """A request must end. Idempotent; sent to admission and to the scheduler, whoever has it acts."""

    request: int
    reason: str = "client_gone"


class Stopped(Message, tag="stopped"):
    """Gateway -> scheduler: a stop string ended a sequence after this many output tokens."""

    sequence: int
    output_tokens: int


class Refused(Message, tag="refused"):
    """Admission -> gateway: the terminal answer of a request that is not served."""

    request: int
    code: str
    message: str
    retry_after_s: float | None = None
    dimension: str = ""
    """Of the limit that binds; empty: none does."""
    position: int | None = None
    """Requests that wait before it."""
    limits: tuple[LimitState, ...] = ()


class Queued(Message, tag="queued"):
    """Admission -> gateway: it waits."""

    request: int
    position: int
    """Requests expected to be released before it."""
    expected_wait_s: float
    limits: tuple[LimitState, ...] = ()


class Admitted(Message, tag="admitted"):
    """Admission -> gateway: released under this class and revision."""

    request: int
    slo_class: str
    revision: int
    queued_ns: int
    released_ns: int
    scheduler_epoch: int = 0
    """Which start of the scheduler it was released to; 0: not said."""
    limits: tuple[LimitState, ...] = ()
    waits_s: dict[str, float] = {}
    """Of the time it waited, by cause: `limits`, `fairness` (others' turn), `window` (its turn, and no room)."""
    counter: float = 0.0
    """Its tenant's in the fair queue, at its release."""
    attempt: int = 0
    """As in `Submit`."""


# --- tokens and usage: scheduler -> gateway, admission -----------------------------------------------------------


class TokenFrame(Message, tag="tokens"):
    """One step's tokens for one gateway."""

    step: int
    executor: int
    revision: int
    sequences: bytes
    """int64 each."""
    tokens: bytes
    """int32 each."""
    finish: bytes
    """int8 each: 0 or a FinishReason."""
    ready_ns: bytes
    """int64 each: when the token could first have been planned."""
    planned_ns: int
    launched_ns: int
    computed_ns: int
    returned_ns: int
    num_prefill_tokens: int = 0
    num_decode_tokens: int = 0
    logprobs: LogprobColumns | None = None
    """None: no row asked for any."""
    prefix_hits: list[tuple[int, int]] = []
    """(request, prompt tokens that it found in the prefix cache), with the first token of its first choice."""
    vectors: dict[int, bytes] = {}
    """Embeddings of these sequences, float32 little-endian."""
    causes: bytes = b""
    """int8 each: `policies.scheduling.causes.Cause` of what the token waited for; empty: `PIPELINE` for all."""
    chunks: dict[int, bytes] = {}
    """Of sequences whose first token this is, the chunks of their prompt: int64 of `stamps.CHUNK_COLUMNS` each."""
    budget_use: float = 0.0
    """Share of the token budget that the step was planned with."""
    kv_use: float = 0.0
    """Share of the executor's KV blocks that were held when it was planned."""
    uncertainty_ns: int = 0
    """How far the executor's stamps may be off the scheduler's clock, on which all stamps are."""


class RequestEnded(Message, tag="ended"):
    """Scheduler -> gateway and admission: terminal for a released request. Admission -> gateway: nobody computes it;
    it may be sent again. Gateway -> admission, when the scheduler is lost: its client has all of it.
    """

    request: int
    outcome: str
    output_tokens: int
    code: str = ""
    message: str = ""
    measured: Measured | None = None
    """None: not said, as by an earlier version and to admission."""
    number: int = 0
    """To admission: counts the ends since the scheduler's start; 0: not said."""
    attempt: int = 0
    """As in `Submit`: which one has ended."""


class EndsKept(Message, tag="ends_kept"):
    """Admission -> scheduler: the ends up to this number are settled for good and need not be told again. The first on
    a connection asks for `Holds`.
    """

    number: int


class Holds(Message, tag="holds"):
    """Scheduler -> admission that connected: what it has, and what has ended without being acknowledged; those ends
    follow, then the capacity.
    """

    requests: list[HeldAtScheduler]


class Usage(Message, tag="usage"):
    """Scheduler -> admission, once per step: one output token for each sequence id (int64)."""

    sequences: bytes
    prefix_hits: list[tuple[int, int]] = []
    """As in `TokenFrame`, for refunds."""


class Capacity(Message, tag="capacity"):
    """Scheduler -> admission and gateways, whenever it changes."""

    num_executors: int
    kv_tokens: int
    max_sequence_tokens: int
    engines: list[EngineInfo] = []
    counts_ends: bool = False
    """Of a scheduler: it keeps ends until they are acknowledged, and answers the first `EndsKept` with `Holds`."""
    levels: Levels | None = None
    """To gateways, once a second. None: this message says nothing of them."""
    resumes: bool = False
    """Whoever says so takes requests that were sent before (`Submit.resent`)."""


# --- policy revisions: admission -> scheduler, gateways ----------------------------------------------------------


class PolicyPrepare(Message, tag="policy_prepare"):
    """Validate and compile this revision; do not use it yet."""

    revision: int
    document: bytes


class PolicyPrepared(Message, tag="policy_prepared"):
    """The answer; `error` is empty when ready."""

    revision: int
    error: str = ""


class PolicyCommit(Message, tag="policy_commit"):
    """Use the prepared revision from the next decision on."""

    revision: int


class PolicyAbort(Message, tag="policy_abort"):
    """Forget the prepared revision."""

    revision: int


class PolicyNow(Message, tag="policy_now"):
    """Admission -> a service that joins: the revision in force, prepared and committed at once."""

    revision: int
    document: bytes


class PolicyStatus(Message, tag="policy_status"):
    """Admission -> gateways: what became of the last save of the policy file."""

    revision: int
    """The revision in force."""
    outcome: str
    """`applied` or `rejected`."""
    error: str = ""


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
