"""The knobs of `fairness:`: who is released next, what a token costs, and how much may be in flight.

Owns these sections alone. What must hold between their values is in `fairness_rules.py`.
"""

from typing import Annotated, Literal

from msgspec import Meta

from policies.document.section import Count, Fraction, Section

Level = Literal["tenant", "project", "key"]
Kind = Literal["vtc", "lcf", "drr", "fcfs"]
Reserve = Literal["declared", "predicted", "occupancy"]
Cost = Annotated[float, Meta(ge=0)]


class WeightedTokens(Section, frozen=True, tag_field="kind", tag="weighted_tokens"):
    """Cost of a request: `prompt` x prompt tokens + `output` x output tokens (VTC, section 3)."""

    prompt: Annotated[float, Meta(gt=0, description="Price of a prompt token.")] = 1.0
    output: Annotated[float, Meta(gt=0, description="Price of an output token.")] = 2.0
    cached_prompt: Annotated[
        Fraction, Meta(description="Share of its price that a prompt token found in the prefix cache keeps.")
    ] = 0.0


class Tokens(Section, frozen=True, tag_field="kind", tag="tokens"):
    """Cost of a request: its tokens, prompt and output alike; those found in the prefix cache are free."""


class Quadratic(Section, frozen=True, tag_field="kind", tag="quadratic"):
    """Cost of a request with p prompt and q output tokens: a p + b q + c p q + d q^2 + e.

    Fitted to seconds, it charges what a request takes of the device. Of Llama-2-7B on an A10G, in ms (VTC's authors):
    a 0.21001891, b 0.10075395, c 0.0039868, d 0.00324733, e 1.14601454.
    """

    a: Annotated[float, Meta(description="For each prompt token.")]
    b: Annotated[float, Meta(description="For each output token.")]
    c: Annotated[float, Meta(description="For each pair of a prompt and an output token.")] = 0.0
    d: Annotated[float, Meta(description="Times the square of the output tokens.")] = 0.0
    e: Annotated[Cost, Meta(description="For each request.")] = 0.0


Prompts = Annotated[
    tuple[Count, ...],
    Meta(min_length=2, description="Prompt lengths of the rows, ascending.", extra={"unit": "tokens"}),
]
Outputs = Annotated[
    tuple[Annotated[int, Meta(ge=0)], ...],
    Meta(min_length=2, description="Output lengths of the columns, ascending from 0.", extra={"unit": "tokens"}),
]
Rows = Annotated[
    tuple[tuple[Cost, ...], ...],
    Meta(min_length=2, description="A row for each prompt length; never falling along a row or a column."),
]


class ReadTable(Section, frozen=True):
    """A table as it was read from its file: so a revision means the same wherever it goes."""

    name: Annotated[str, Meta(description="Of the file, as the policy file has it.")]
    prompt_tokens: Prompts
    output_tokens: Outputs
    costs: Rows


class Table(Section, frozen=True, tag_field="kind", tag="table"):
    """Cost of a request from a measured profile, in a file or here: linear between its points, and beyond the last as
    between the last two; below the first prompt length the same as there.
    """

    prompt_tokens: Prompts = ()
    output_tokens: Outputs = ()
    costs: Rows = ()
    file: Annotated[
        str | ReadTable | None,
        Meta(
            description="Instead of these three: a CSV file with the columns prompt_tokens, output_tokens and cost, by "
            "its path from the policy file; it is watched as that is, and its points are part of each revision."
        ),
    ] = None

    @property
    def points(self) -> "Table | ReadTable":
        """What holds the points."""
        return self.file if isinstance(self.file, ReadTable) else self


class KvTokenTime(Section, frozen=True, tag_field="kind", tag="kv_token_time"):
    """Cost of a request: tokens held x steps held, the prompt for one step and prompt and output for each token."""


class LengthPredictor(Section, frozen=True):
    """A guess of how many tokens a tenant's next output has, from those before: exactly one of these."""

    mean_last: Annotated[Count | None, Meta(description="The mean of so many of its last outputs.")] = None
    ema: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        Meta(description="A mean in which the newest output has this weight."),
    ] = None
    noisy_oracle: Annotated[
        Annotated[float, Meta(ge=0, lt=1)] | None,
        Meta(description="In replay only: the true length, up to this share off, drawn for each request."),
    ] = None


class Pools(Section, frozen=True):
    """A window as a multiple of the KV pool: what waits in it the scheduler can order."""

    pools: Annotated[float, Meta(gt=0, description="Times what the KV pool holds.")]


class Fairness(Section, frozen=True):
    """Who is released next, and how many tokens may be in flight (the `M` of VTC's bound)."""

    kind: Annotated[
        Kind,
        Meta(
            description="vtc: the backlogged tenant with the smallest virtual token counter; lcf: the same without the "
            "lift, so that unused service is stored; drr: deficit round robin; fcfs: by arrival."
        ),
    ] = "vtc"
    cost: Annotated[
        WeightedTokens | Tokens | Quadratic | Table | KvTokenTime,
        Meta(description="What a request costs its tenant."),
    ] = WeightedTokens()
    levels: Annotated[
        tuple[Level, ...],
        Meta(
            description="Among whom service is divided, level below level: tenants, the projects of a tenant, the keys "
            "of a project. Weights of tenants are in tenants.yaml."
        ),
    ] = ("tenant", "project", "key")
    predictor: Annotated[
        Literal["none", "declared", "oracle"] | LengthPredictor,
        Meta(
            description="Output charged at release, and corrected by what comes. none: each token when it comes; "
            "declared: the request's maximum; oracle, in replay only: the true length."
        ),
    ] = "none"
    window_tokens: Annotated[
        Annotated[int, Meta(ge=1)] | Literal["auto"] | Pools,
        Meta(
            description="Tokens in flight (prompt + declared maximum output); auto: what the KV pool holds, narrowed "
            "while serving as far as throughput stays within 2 %, and with kind: fcfs no limit but max_requests; "
            "{pools: N}: N times the pool, for the scheduler to order.",
            extra={"unit": "tokens"},
        ),
    ] = "auto"
    reserve: Annotated[
        Reserve,
        Meta(
            description="What a request takes of the window. declared: prompt and maximum output; predicted: prompt "
            "and what `predictor` says, more once it has made more; occupancy, in replay only: what all are ever "
            "going to hold at once must fit (VTC's authors)."
        ),
    ] = "declared"
    max_requests: Annotated[Count, Meta(description="Requests in flight, whatever their size.")] = 1000
    admit_every_steps: Annotated[
        Count | None,
        Meta(
            description="Decode steps after a release before the next, which comes when a step has ended, unless all "
            "is idle; absent: releases come with any event."
        ),
    ] = None
    admit_prompt_tokens: Annotated[
        Count | None,
        Meta(
            description="With admit_every_steps: most prompt tokens released at a time, but always one prompt; absent: "
            "no limit.",
            extra={"unit": "tokens"},
        ),
    ] = None
    quantum_tokens: Annotated[
        Annotated[float, Meta(gt=0)] | Literal["auto"],
        Meta(description="For kind: drr: service of a turn, in cost units; auto: a twentieth of the window."),
    ] = "auto"
    idle_ttl_s: Annotated[
        float,
        Meta(
            gt=0,
            description="What a tenant owes is forgotten once it has had nothing here for so long, seconds.",
            extra={"unit": "seconds"},
        ),
    ] = 3600.0
