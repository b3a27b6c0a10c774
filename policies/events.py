"""Everything that can happen to a core.

An event carries what a decision needs and no payload: counts, not token ids or text. Times are seconds; a duration or
an age, never another process's clock. Both cores take `(event, now)`; `now` never goes backwards.

Ids: a request of `n` choices owns the sequence ids `request .. request + n - 1`.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from policies.admission.limits.items import LimitItem, LimitState


class Event(msgspec.Struct, frozen=True, tag=True, tag_field="event", omit_defaults=True):
    """Something that happened, as a core sees it and as the event log stores it."""


class HeldAtScheduler(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request that the scheduler has: enough to charge for it without having released it."""

    request: Annotated[int, Meta(ge=0, lt=2**62)]
    tenant: str
    project: str
    key: str
    slo_class: str
    weight: Annotated[float, Meta(gt=0, le=1e9)]
    prompt_tokens: Annotated[int, Meta(ge=0, lt=2**31)]
    max_output_tokens: Annotated[int, Meta(ge=0, lt=2**31)]
    """Of one choice."""
    num_choices: Annotated[int, Meta(ge=1, le=2**16)]
    output_tokens: Annotated[int, Meta(ge=0, lt=2**40)]
    """Produced so far, all choices together."""
    cached_tokens: Annotated[int, Meta(ge=0, le=2**60)] = 0
    """Of the prompt, found in the prefix cache."""
    attempt: Annotated[int, Meta(ge=0, lt=2**31)] = 0
    """As in `Arrived`, of what is computed."""
    tier: str = ""
    """The tenant's when it came."""


class Started(Event, frozen=True):
    """The first event: maps core time to wall time."""

    wall_s: float


class PolicyApplied(Event, frozen=True):
    """A policy revision takes effect now. Always the second event; later ones replace the policy while running."""

    revision: int
    document: bytes
    """The YAML text, already validated: compiling it again cannot fail."""


class Woke(Event, frozen=True):
    """The time asked for by a `WakeAt` has come."""


class CancelRequested(Event, frozen=True):
    """The client went away, or somebody else decided that a request must end. Unknown requests are ignored."""

    request: int
    reason: str = "client_gone"


# --- admission ---------------------------------------------------------------------------------------------------


class Arrived(Event, frozen=True):
    """A request passed the gateway: its tenant is known and its prompt counted."""

    request: int
    tenant: str
    tier: str
    prompt_tokens: int
    max_output_tokens: int
    num_choices: int = 1
    weight: float = 1.0
    project: str = "default"
    key: str = ""
    service_tier: str | None = None
    allowed_classes: tuple[str, ...] = ()
    """Classes this tenant may use; empty: any."""
    declared: bool = True
    """The client said how many output tokens it wants at most; else `max_output_tokens` is what there is room for."""
    output_tokens: int | None = None
    """How many each choice will produce; None: nobody knows, which is so wherever it is not a replay."""
    resent: bool = False
    """Its gateway has sent it before, and lost whom it sent it to, or the scheduler."""
    attempt: int = 0
    """How often whoever computed it was lost."""
    made_tokens: int = 0
    """Output that its client has, over all choices: what was made beyond that is made again."""
    waited_s: float = 0.0
    """Since it came to its gateway, where it was sent before."""


class Invalid(Event, frozen=True):
    """A request that the gateway will answer with a 400: it counts against its caller's `requests` limits."""

    request: int
    tenant: str
    project: str = "default"
    key: str = ""
    tier: str = ""


class Reserved(Event, frozen=True):
    """The store has taken all that a `Reserve` asked for."""

    request: int
    limits: tuple[LimitState, ...] = ()


class OverLimit(Event, frozen=True):
    """The store has taken nothing of a `Reserve`, because this item does not fit."""

    request: int
    item: LimitItem
    """The one with the longest wait."""
    wait_s: float | None
    """Until the same request passes if nobody takes more; None: unknown (a gauge), or never (`never_fits`)."""
    used: int = 0
    never_fits: bool = False
    """It asks for more than the limit's burst."""
    limits: tuple[LimitState, ...] = ()


class Restored(Event, frozen=True):
    """What the store kept of an earlier process; the third event of a start that found some."""

    state: bytes
    """As `policies.admission.saved` writes it."""


class SchedulerHolds(Event, frozen=True):
    """The scheduler is there again, and this is all that it has of what was released to it before.

    What is in flight here and not in the list is settled as delivered so far, or stranded; what is listed and not known
    here is taken up.
    """

    requests: tuple[HeldAtScheduler, ...]
    resume_s: float = 0.0
    """As in `SchedulerLost`."""


class CountersShared(Event, frozen=True):
    """What other replicas have done since the last time. Nodes are named as in `policies.admission.shared`."""

    charged: dict[str, float]
    """What is to be added to a node's counter; a node that is not known here begins at 0."""
    floors: dict[str, float]
    """The smallest counter of a backlogged child of a node over all other replicas; the root's name is empty."""
    num_replicas: int = 1
    staleness: float = 0.0
    """By how much the bounds grow because replicas know of each other's charges late (fairness specification, F12): 2 D
    for each other replica, in cost units over the weight.
    """


class StoreReach(Event, frozen=True):
    """A store that admission shares with other processes is out of reach, or is there again."""

    refuses: Literal["nothing", "limited", "all"] = "nothing"
    """Which new requests are refused from now on: those that a limit applies to, or every one."""
    lost_s: float = 0.0
    """For how long it has been out of reach."""


class CapacityChanged(Event, frozen=True):
    """What the executors behind the scheduler hold together. Zero executors: nothing can be released."""

    num_executors: int
    kv_tokens: int
    """Tokens of KV in all pools."""
    max_sequence_tokens: int
    """Longest sequence (prompt + output) that one pool and the model allow."""
    num_admissions: int = 1
    """Processes of admission that divide it: each has as much of the window and of the queue."""


class TokensProduced(Event, frozen=True):
    """One output token for each sequence id listed (one event per step)."""

    sequences: list[int]
    prefix_hits: list[tuple[int, int]] = []
    """(request, prompt tokens that it found in the prefix cache), with its first token."""


class PrefixesFound(Event, frozen=True):
    """What is known of prompts without a step that says it: whoever read their first tokens was told."""

    hits: list[tuple[int, int]]
    """(request, prompt tokens that it found in the prefix cache)."""


class RequestFinished(Event, frozen=True):
    """The scheduler is done with a request."""

    request: int
    output_tokens: int
    """Tokens that count, all choices together: what the reader got, after stop strings."""
    outcome: str = "finished"
    attempt: int = 0
    """As in `Arrived`, of what has ended."""
    resume_s: float = 0.0
    """It was cancelled because its gateway's stream broke: how long the gateway may still go on with it."""


class SchedulerLost(Event, frozen=True):
    """The scheduler is gone, with all that was in flight."""

    resume_s: float = 0.0
    """How long gateways may go on with what was in flight, before that is settled as delivered so far; 0: it is settled
    now.
    """


# --- scheduling --------------------------------------------------------------------------------------------------


class StepLimits(msgspec.Struct, frozen=True):
    """From when on an executor that has a step is treated as dead."""

    at_least_s: float
    times: float
    """Of the time that such a step is expected to take."""
    first_s: float
    """For the first step of an executor, of which nothing is known and which may compile."""


class ExecutorJoined(Event, frozen=True):
    """An executor is ready with an empty KV pool."""

    executor: int
    num_blocks: int
    """Blocks that may be allocated (a scratch block of the engine is not among them)."""
    block_tokens: int
    max_sequence_tokens: int
    """The model's context length."""
    max_steps_in_flight: int = 2
    copies_blocks: bool = False
    """It can copy KV blocks before a step."""
    step_limits: StepLimits | None = None
    """None: nobody watches it."""


class ExecutorLost(Event, frozen=True):
    """An executor is gone with its KV; its sequences are recomputed elsewhere or when it returns."""

    executor: int


class Released(Event, frozen=True):
    """Admission let a request in."""

    request: int
    slo_class: str
    prompt_tokens: int
    max_output_tokens: int
    num_choices: int = 1
    waited_s: float = 0.0
    """Time since the request was received."""
    gateway: int = 0
    """Where its tokens go."""
    owner: str = ""
    """Whose prefixes it may share, as far as the policy keeps owners apart."""
    prompt_keys: bytes = b""
    """16 bytes for each `key_tokens` tokens of the prompt, and 16 for the whole prompt where that is no multiple: a
    salted hash of all tokens up to there. Empty: every token is to be computed, and nobody may use what was."""
    key_tokens: int = 0
    output_tokens: int | None = None
    """How many it will produce; None: nobody knows, which is so wherever it is not a replay."""
    made_tokens: tuple[int, ...] = ()
    """Output that each choice has from a scheduler that was lost; empty: none."""
    ended: tuple[int, ...] = ()
    """Choices that ended there, by number."""


class StepEnded(Event, frozen=True):
    """An executor finished a step."""

    executor: int
    step: int
    step_time_s: float
    """`ended_n - max(launched_n, ended_{n-1})` on the executor's clock."""
    ended: list[int] = []
    """Sequences that sampled an end-of-sequence token in this step."""
    ended_ago_s: float = 0.0
    """How long ago it ended (the way back to the scheduler)."""
    failed: dict[int, str] = {}
    """Sequences that the executor cannot go on with, and why; their tokens of this step mean nothing."""
    keys: list[tuple[int, bytes]] = []
    """Sequences that went past a further multiple of their `key_tokens` with output, and the hashes up to there."""


class StopFound(Event, frozen=True):
    """The gateway found a stop string: a sequence ends with this many output tokens counted."""

    sequence: int
    output_tokens: int


class GatewayStalled(Event, frozen=True):
    """A gateway stopped reading its stream (its transport's buffer is above the high-water mark)."""

    gateway: int


class GatewayResumed(Event, frozen=True):
    """A stalled gateway reads again."""

    gateway: int


class GatewayLost(Event, frozen=True):
    """A gateway's stream closed: its sequences are cancelled."""

    gateway: int


AdmissionEvent = (
    Started
    | PolicyApplied
    | Woke
    | CancelRequested
    | Arrived
    | CapacityChanged
    | TokensProduced
    | PrefixesFound
    | RequestFinished
    | SchedulerLost
    | Invalid
    | Reserved
    | OverLimit
    | Restored
    | SchedulerHolds
    | CountersShared
    | StoreReach
)
SchedulerEvent = (
    Started
    | PolicyApplied
    | Woke
    | CancelRequested
    | ExecutorJoined
    | ExecutorLost
    | Released
    | StepEnded
    | StopFound
    | GatewayStalled
    | GatewayResumed
    | GatewayLost
)
