"""Every knob an operator can turn: its type, unit, bound, default and one sentence.

Owns the shape of a policy document and nothing else: no defaults live anywhere but here, in `memory.py` (the sections
about KV memory), `fairness.py` and `limits.py`, no file is read here, and no other module declares a knob.
`schema.json` is generated from these types.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, field

from policies.document.fairness import Fairness
from policies.document.limits import Limit
from policies.document.memory import Kv, Prediction, Preemption
from policies.document.section import Count, Fraction, Label, Name, Seconds, Section
from policies.document.tracing import Tracing

OrderKey = Literal[
    "arrival",
    "admission",
    "prompt_tokens",
    "remaining_prompt_tokens",
    "class_priority",
    "last_schedulable_time",
    "aged",
    "predicted_output",
    "most_predicted_output",
    "predicted_kv_volume",
]
PrefillSource = Literal["waiting", "started"]


class SloClass(Section, frozen=True):
    """A service level: what its readers may expect. Classes are listed by priority, the most important first."""

    name: Name
    ttft_s: Annotated[Seconds, Meta(description="Time to first token promised to this class, seconds.")]
    tbt_s: Annotated[Seconds, Meta(description="Longest gap between tokens promised to this class, seconds.")]


class Match(Section, frozen=True):
    """What a request must look like for a classify rule to apply; every field given must agree."""

    tier: Annotated[str | None, Meta(description="The tenant's tier in tenants.yaml.")] = None
    tenant: Annotated[str | None, Meta(description="The tenant's name in tenants.yaml.")] = None
    service_tier: Annotated[str | None, Meta(description="The request's own `service_tier` field.")] = None


class ClassifyRule(Section, frozen=True):
    """The first rule that matches gives a request its class; the last rule matches everything."""

    class_: Annotated[Name, Meta(description="The class given; one of `classes`.")] = field(name="class")
    when: Annotated[Match | None, Meta(description="Conditions; absent means always.")] = None


class Queue(Section, frozen=True):
    """How long the backlog may grow before a request is refused instead of kept waiting. Where several processes of
    admission share a store, each keeps as much of it as the others, and at least one request.
    """

    per_tenant_max: Annotated[Count, Meta(description="Requests of one tenant that may wait.")] = 500
    total_max: Annotated[Count, Meta(description="Requests that may wait in all.")] = 10_000
    ttl_s: Annotated[
        float, Meta(gt=0, description="Longest wait before a refusal, seconds.", extra={"unit": "seconds"})
    ] = 60.0


class StandingQueue(Section, frozen=True):
    """A load that lasts, told from a burst: three of four requests and more were late all the while."""

    after_s: Annotated[
        Seconds,
        Meta(description="Refuse nobody until more than three of four requests have been late for so long; seconds."),
    ] = 10.0


class Admission(Section, frozen=True):
    """What happens to a request that the promises of its class come too late for."""

    refuse_when_late: Annotated[
        bool | StandingQueue,
        Meta(
            description="Refuse a request whose first token cannot come within its class's ttft_s any more, with the "
            "wait expected: on arrival, and while it waits; false: it waits until ttl_s, and is served late; a "
            "mapping: only while a load lasts."
        ),
    ] = False


class Routing(Section, frozen=True):
    """Which executor a released sequence goes to."""

    kind: Annotated[
        Literal["least_kv", "random"],
        Meta(
            description="least_kv: the executor with the fewest KV tokens held or promised; random: each with the same "
            "chance (the router of RAD's theorem)."
        ),
    ] = "least_kv"
    seed: Annotated[int, Meta(ge=0, description="Of a random choice: the same seed makes the same choices.")] = 0


class AtLeast(Section, frozen=True):
    """A lower bound on a count."""

    at_least: Annotated[int, Meta(ge=0, description="The count from which the condition holds.")]


class StageCondition(Section, frozen=True):
    """When a stage takes part in a plan."""

    decoding: Annotated[
        AtLeast | None, Meta(description="Holds when this many sequences are decoding, planned or not.")
    ] = None


class DecodeStage(Section, frozen=True):
    """Offers the remaining budget to decodes: one token for each sequence."""

    when: Annotated[Literal["any", "due"], Meta(description="due: only decodes past their last schedulable time.")] = (
        "any"
    )
    order: Annotated[tuple[OrderKey, ...], Meta(description="Ascending, lexicographic; ties by age.")] = ("arrival",)
    exclusive: Annotated[bool, Meta(description="If this stage planned anything, later stages are skipped.")] = False
    if_: Annotated[StageCondition | None, Meta(description="Skip the stage unless this holds.")] = field(
        name="if", default=None
    )


class PrefillStage(Section, frozen=True):
    """Offers the remaining budget to prompts, whole or in chunks."""

    from_: Annotated[
        PrefillSource | tuple[PrefillSource, ...],
        Meta(description="waiting: no KV held yet; started: prompt partly computed; started come first in a list."),
    ] = field(name="from")
    order: Annotated[tuple[OrderKey, ...], Meta(description="Ascending, lexicographic; ties by age.")] = ("arrival",)
    merge: Annotated[bool, Meta(description="Order started and waiting together instead of started first.")] = False
    chunked: Annotated[bool, Meta(description="false: a prompt that does not fit the budget ends the stage.")] = True
    chunk: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(
            description="Chunks are multiples of this many tokens (a final piece may be shorter).",
            extra={"unit": "tokens"},
        ),
    ] = None
    max_sequences: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="Prompts this stage may plan in one step.")
    ] = None
    max_remaining_tokens: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="Only prompts with at most this many tokens left to compute.", extra={"unit": "tokens"}),
    ] = None
    exclusive: Annotated[bool, Meta(description="If this stage planned anything, later stages are skipped.")] = False
    if_: Annotated[StageCondition | None, Meta(description="Skip the stage unless this holds.")] = field(
        name="if", default=None
    )


class Stage(Section, frozen=True):
    """One stage: exactly one of `decode` and `prefill`."""

    decode: DecodeStage | None = None
    prefill: PrefillStage | None = None


class StepBudget(Section, frozen=True):
    """A token budget that follows time: as many tokens as the step is to take, by what the last steps took."""

    max_step_s: Annotated[
        Annotated[float, Meta(gt=0)] | Literal["auto"],
        Meta(description="Longest step, seconds; auto: what the most urgent decode's deadline leaves."),
    ] = "auto"
    share: Annotated[
        float, Meta(gt=0, le=1, description="Of that time, what a step is planned for; the rest absorbs surprises.")
    ] = 0.95
    tile: Annotated[
        Count,
        Meta(description="A step with prompts holds a multiple of so many tokens.", extra={"unit": "tokens"}),
    ] = 128
    min: Annotated[
        Count,
        Meta(description="A step with prompts may always hold so many tokens.", extra={"unit": "tokens"}),
    ] = 128
    max: Annotated[Count, Meta(description="Most tokens of a step.", extra={"unit": "tokens"})] = 2048


class Batching(Section, frozen=True):
    """A step plan: stages that each offer the remaining token budget to one kind of work, in this order."""

    stages: Annotated[tuple[Stage, ...], Meta(min_length=1, description="Offered the budget in this order.")]
    token_budget: Annotated[
        Annotated[int, Meta(ge=1)] | Literal["none"] | StepBudget,
        Meta(
            description="Tokens in one step; none: no limit, only when every prefill stage has chunked: false; a "
            "mapping: a limit that follows time.",
            extra={"unit": "tokens"},
        ),
    ] = 512
    max_sequences: Annotated[Count, Meta(description="Sequences holding KV blocks, planned or not.")] = 128
    max_decodes: Annotated[Count, Meta(description="Decodes in one step.")] = 128
    aging_s: Annotated[
        Seconds,
        Meta(description="Age from which the order key `aged` puts a sequence first, among such by arrival; seconds."),
    ] = 30.0


class OffsetSteps(Section, frozen=True):
    """SLAI's Theta: how many mean steps before its deadline a decode becomes due."""

    below: Annotated[float, Meta(ge=0, description="While KV use is below `kv_threshold`.")] = 5.0
    above: Annotated[float, Meta(ge=0, description="From `kv_threshold` on: decode eagerly, free blocks.")] = 10.0
    kv_threshold: Annotated[Fraction, Meta(description="Share of KV blocks in use.")] = 0.96


class Ewma(Section, frozen=True):
    """An exponentially weighted mean."""

    ewma: Annotated[float, Meta(gt=0, le=1, description="Weight of the newest step.")]


class Deadlines(Section, frozen=True):
    """When a decode must be planned to keep its class's TBT."""

    step_time: Annotated[
        Literal["mean"] | Ewma, Meta(description="Estimate of a step's time: mean of all since start, or an EWMA.")
    ] = "mean"
    slack: Annotated[
        Literal["steps", "exact"],
        Meta(
            description="steps: due `offset_steps` mean steps before its deadline (SLAI, eq. 8); exact: due in the "
            "last step that still meets it, and at once while it has no token."
        ),
    ] = "steps"
    offset_steps: OffsetSteps = OffsetSteps()
    eager_kv: Annotated[
        Fraction,
        Meta(description="With slack: exact: every decode is due from this share of KV blocks in use, to free blocks."),
    ] = 0.9


class Policy(Section, frozen=True):
    """One versioned document for all services."""

    version: Annotated[Literal[1], Meta(description="Version of this format.")]
    name: Annotated[Name, Meta(description="Shown on every plan, trace and metric.")]
    classes: Annotated[tuple[SloClass, ...], Meta(min_length=1, description="Service levels by priority.")]
    batching: Batching
    description: Annotated[str, Meta(description="For people.")] = ""
    classify: Annotated[
        tuple[ClassifyRule, ...], Meta(description="First match wins; empty: everything gets the last class.")
    ] = ()
    limits: Annotated[
        tuple[Limit, ...],
        Meta(description="Contracts, taken on arrival all together or not at all; a change holds from then on."),
    ] = ()
    admission: Admission = Admission()
    fairness: Fairness = Fairness()
    queue: Queue = Queue()
    routing: Routing = Routing()
    deadlines: Deadlines = Deadlines()
    kv: Kv = Kv()
    preemption: Preemption = Preemption()
    prediction: Prediction = Prediction()
    tracing: Tracing = Tracing()


PLANNED_SECTIONS = ("elastic", "padded_batching", "autotune")
"""Sections of the format that no code reads yet: naming one is an error that says so, never a silent no-op."""


class HashedKey(Section, frozen=True):
    """An API key as stored: SHA-256 of a 256-bit random secret (no salt needed at that entropy)."""

    id: Annotated[Label, Meta(description="Public name of the key, shown in listings and logs.")]
    sha256: Annotated[
        str,
        Meta(
            pattern=r"^[0-9a-f]{64}$",
            description="Hex digest of the whole key.",
            extra={"words": "64 hexadecimal digits in lowercase"},
        ),
    ]
    project: Annotated[Name, Meta(description="The project it belongs to.")] = "default"
    revoked: Annotated[bool, Meta(description="A revoked key is refused and kept for the record.")] = False
    scope: Annotated[
        Literal["inference", "admin"],
        Meta(description="What it opens: requests to the model, or the console and what it shows of all tenants."),
    ] = "inference"


class Tenant(Section, frozen=True):
    """Who is billed and protected: the top of tenant / project / key."""

    name: Name
    tier: Annotated[Label, Meta(description="Matched by `classify` rules.")] = "free"
    weight: Annotated[float, Meta(gt=0, le=1e9, description="Share of service relative to the other tenants.")] = 1.0
    classes: Annotated[tuple[Label, ...], Meta(description="Classes it may use; empty: any.")] = ()
    keys: Annotated[tuple[HashedKey, ...], Meta(description="Its API keys.")] = ()


class Tenants(Section, frozen=True):
    """The second file: tenants and hashed API keys. A policy is shared, keys are not."""

    version: Literal[1] = 1
    tenants: tuple[Tenant, ...] = ()


def json_schema() -> dict[str, object]:
    """JSON Schema of a policy document, for editors to complete and check YAML with."""
    return msgspec.json.schema(Policy)
