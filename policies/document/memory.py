"""The knobs of KV memory: what a sequence reserves, who gives blocks back, and how long an output is expected to be.

A part of `schema.py`, which says what a knob is.
"""

from typing import Annotated, Literal

from msgspec import Meta

from policies.document.section import Count, Fraction, Section

VictimKind = Literal["newest_started_prefill", "newest", "newest_decode", "least_predicted_output", "self"]
Estimate = Literal["lower", "point", "upper", "oracle"]
LENGTH_KEYS = ("predicted_output", "most_predicted_output", "predicted_kv_volume")
"""Order keys that go by the predicted output."""
PredictorKind = Literal["constant", "bucket", "conformal", "distribution", "oracle"]
PriorKind = Literal["lognormal", "geometric", "linear_geometric", "two_point", "empirical"]
Share = Annotated[float, Meta(gt=0, lt=1)]


class Headroom(Section, frozen=True):
    """A part of the pool that long prompts leave to short ones."""

    share: Annotated[float, Meta(ge=0, lt=1, description="Share of blocks that stay free when a long prompt starts.")]
    prompt_tokens: Annotated[
        int,
        Meta(ge=1, description="Prompts of at most so many tokens may start into it.", extra={"unit": "tokens"}),
    ]


class Kv(Section, frozen=True):
    """What a sequence reserves of the KV pool when it starts, and whose computed prefixes it may use."""

    admit: Annotated[
        Literal["prompt", "max_length", "future"],
        Meta(
            description="prompt: blocks of the whole prompt; max_length: of the longest it may become; future: of the "
            "prompt, and it starts only if all that run fit to their predicted ends."
        ),
    ] = "prompt"
    estimate: Annotated[
        Estimate,
        Meta(
            description="The predicted output length that order keys, victims and admit: future go by; oracle: the "
            "true one, in replay only."
        ),
    ] = "lower"
    reserve: Annotated[
        float, Meta(ge=0, lt=1, description="Share of the pool that admit: future leaves out of its reckoning.")
    ] = 0.0
    convention: Annotated[
        Literal["engine", "paper"],
        Meta(
            description="engine: a token's KV is held from the step after it; paper: from the step that makes it, one "
            "token more a sequence, in replay only."
        ),
    ] = "engine"
    watermark: Annotated[float, Meta(ge=0, lt=1, description="Share of blocks kept free when a sequence starts.")] = (
        0.01
    )
    headroom: Annotated[
        Headroom | None, Meta(description="Blocks kept free for short prompts, beside the watermark; absent: none.")
    ] = None
    share: Annotated[
        Literal["tenant", "all", "none"],
        Meta(
            description="Requests that begin alike share the KV of that prefix. tenant: those of one tenant; all: "
            "everybody's (a tenant can then time what others have asked); none: every prompt is computed."
        ),
    ] = "tenant"


class Preemption(Section, frozen=True):
    """Who gives blocks back when a decode finds none free, and how it goes on."""

    victim: Annotated[
        tuple[VictimKind, ...], Meta(min_length=1, description="Tried in this order; the last resort is self.")
    ] = ("newest", "self")
    requeue: Annotated[
        Literal["head", "ordered"],
        Meta(description="Where a preempted sequence waits. head: before all others; ordered: as the stage orders it."),
    ] = "head"
    resume: Annotated[
        Literal["keep_tokens", "restart"],
        Meta(description="keep_tokens: it goes on after its last token; restart: from its first, in replay only."),
    ] = "keep_tokens"
    max_per_sequence: Annotated[
        Count | None,
        Meta(description="A sequence preempted this often is protected: others go first. Absent: nobody is."),
    ] = None
    protected_share: Annotated[
        Fraction, Meta(description="Share of the pool that protected sequences may come to; beyond it the oldest are.")
    ] = 0.5


class Interval(Section, frozen=True):
    """Output lengths, tokens; lower <= point <= upper."""

    lower: Annotated[Count, Meta(description="Rarely shorter than this.", extra={"unit": "tokens"})]
    upper: Annotated[Count, Meta(description="Rarely longer than this.", extra={"unit": "tokens"})]
    point: Annotated[
        Count | None,
        Meta(description="As likely shorter as longer; absent: the middle.", extra={"unit": "tokens"}),
    ] = None


class Prior(Section, frozen=True):
    """A distribution of output lengths."""

    kind: Annotated[
        PriorKind,
        Meta(
            description="lognormal: median, sigma; geometric: mean; linear_geometric: chance in proportion to length x "
            "a geometric one, mean; two_point, empirical: values, shares."
        ),
    ]
    mean: Annotated[
        Annotated[float, Meta(gt=1)] | None, Meta(description="Mean output length.", extra={"unit": "tokens"})
    ] = None
    median: Annotated[
        Annotated[float, Meta(ge=1)] | None, Meta(description="Median output length.", extra={"unit": "tokens"})
    ] = None
    sigma: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="Standard deviation of the length's logarithm.")
    ] = None
    values: Annotated[tuple[Count, ...], Meta(description="The lengths there are, ascending, tokens.")] = ()
    shares: Annotated[
        tuple[Annotated[float, Meta(gt=0)], ...],
        Meta(description="How often each of `values` is, in proportion; absent: all alike."),
    ] = ()


class Survival(Section, frozen=True):
    """How the estimate of a sequence follows what it has produced: exactly one of the two."""

    quantile: Annotated[
        Share | None,
        Meta(description="This quantile of the prior, given that the output is longer than what there is of it."),
    ] = None
    support: Annotated[
        tuple[Count, ...],
        Meta(description="The lengths there are, ascending: whoever outlives one is preempted and waits as the next."),
    ] = ()


class CoverageTarget(Section, frozen=True):
    """How often a predicted bound holds."""

    lower: Annotated[Share, Meta(description="Share of outputs at least as long as their lower bound.")] = 0.95
    upper: Annotated[Share, Meta(description="Share of outputs no longer than their upper bound.")] = 0.95


class Prediction(Section, frozen=True):
    """How long an output is expected to be: an interval for each request, made when it is released."""

    kind: Annotated[
        PredictorKind,
        Meta(
            description="conformal: from what tenants' requests of this class and prompt length came to, corrected "
            "while it runs; constant: `interval`; distribution: quantiles of `prior`; in replay only, bucket: the one "
            "of `borders` that the true length is in; oracle: the true length, or `error` around it."
        ),
    ] = "conformal"
    coverage: Annotated[CoverageTarget, Meta(description="How often the bounds hold.")] = CoverageTarget()
    window: Annotated[
        Annotated[int, Meta(ge=50, le=100_000)],
        Meta(description="Finished requests that `conformal` remembers of each kind.", extra={"unit": "requests"}),
    ] = 500
    point: Annotated[Literal["median", "midpoint"], Meta(description="midpoint: halfway between the bounds.")] = (
        "median"
    )
    survive: Annotated[
        Literal["refine"] | Survival,
        Meta(description="refine: an estimate is never below what there is of the output."),
    ] = "refine"
    interval: Annotated[Interval | None, Meta(description="For kind: constant.")] = None
    borders: Annotated[
        tuple[Count, ...],
        Meta(description="For kind: bucket: the longest output of each bucket but the last, ascending, tokens."),
    ] = ()
    prior: Annotated[Prior | None, Meta(description="For kind: distribution.")] = None
    error: Annotated[
        float, Meta(ge=0, lt=1, description="For kind: oracle: half the interval's width, as a share of the length.")
    ] = 0.0
    position: Annotated[
        Literal["centre", "random"], Meta(description="For kind: oracle: where in its interval the true length is.")
    ] = "centre"
    seed: Annotated[int, Meta(ge=0, description="For position: random.")] = 0
