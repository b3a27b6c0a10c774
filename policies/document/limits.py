"""Every knob of `limits`: contracts, each on one dimension of one scope.

A part of `schema.py`, which says what a knob is.
"""

from typing import Annotated, Literal

from msgspec import Meta, field

from policies.document.section import Count, Name, Section

LimitScope = Literal["key", "project", "tenant", "class", "model"]
LimitDimension = Literal["requests", "prompt_tokens", "output_tokens", "total_tokens", "concurrency", "queued"]


class LimitMatch(Section, frozen=True):
    """Whose requests a limit is for; every field given must agree."""

    tier: Annotated[str | None, Meta(description="The tenant's tier in tenants.yaml.")] = None
    tenant: Annotated[str | None, Meta(description="The tenant's name in tenants.yaml.")] = None
    class_: Annotated[Name | None, Meta(description="The request's class when it arrives; one of `classes`.")] = field(
        name="class", default=None
    )


class Limit(Section, frozen=True):
    """What one key, project, tenant or class, or all of the model together, may take. Of the limits with the same
    scope, dimension, period and mode, the first whose `when` agrees is the one that a request is held to.
    """

    scope: Annotated[LimitScope, Meta(description="Each of these has the limit to itself; model: all share it.")]
    dimension: Annotated[
        LimitDimension,
        Meta(
            description="What is counted: over time (requests and tokens, output tokens as they are produced and until "
            "then as the request may produce them), or there at once (concurrency: until a request's end; queued: "
            "until its release)."
        ),
    ]
    rate_per_min: Annotated[Count | None, Meta(description="Most in a minute, again and again.")] = None
    rate_per_day: Annotated[Count | None, Meta(description="Most in a day, again and again.")] = None
    max: Annotated[Count | None, Meta(description="Most at once, of concurrency and queued.")] = None
    burst: Annotated[
        Count | None,
        Meta(description="Most that may be taken at once after a rest; absent: as much as the rate says."),
    ] = None
    algorithm: Annotated[
        Literal["gcra", "token_bucket", "sliding_log"] | None,
        Meta(
            description="gcra and token_bucket: what was taken comes back evenly; sliding_log: each "
            "request's part by itself, when its period is over; it remembers them all, so it is for some thousand "
            "requests. Absent: gcra for requests, token_bucket for tokens."
        ),
    ] = None
    mode: Annotated[
        Literal["hard", "only_when_saturated"],
        Meta(description="only_when_saturated: holds, and counts, only what arrives while requests wait."),
    ] = "hard"
    when: Annotated[LimitMatch | None, Meta(description="For whom; absent: for everybody.")] = None
