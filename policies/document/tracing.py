"""What is kept of each token's way: the knobs of tracing, and what they come to in words.

A part of `schema.py`, which says what a knob is.
"""

from typing import Annotated, Literal

from msgspec import Meta

from policies.document.section import Fraction, Section


class SpansFor(Section, frozen=True):
    """Shares of requests whose tokens get spans of their own; all others have them as arrays on one span."""

    slo_miss: Annotated[Fraction, Meta(description="Of requests that broke a promise of their class.")] = 1.0
    error: Annotated[Fraction, Meta(description="Of requests that failed.")] = 1.0
    otherwise: Annotated[Fraction, Meta(description="Of the rest.")] = 0.01


class Tracing(Section, frozen=True):
    """What is kept of each token's way."""

    tokens: Annotated[
        Literal["array"], Meta(description="array: every stamp of every token, in arrays on the request's span.")
    ] = "array"
    spans_for: SpansFor = SpansFor()


def tracing_in_words(tracing: Tracing) -> list[str]:
    """One sentence a line."""
    shares = tracing.spans_for
    misses, errors, rest = (_percent(share) for share in (shares.slo_miss, shares.error, shares.otherwise))
    sentence = (
        f"The stamps of all tokens are kept; in {misses} of the requests that break a promise, in {errors} of those "
        f"that fail and in {rest} of the others each token has a span."
    )
    return [sentence]


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
