"""The knobs of KV memory: what a sequence reserves, and who gives blocks back.

A part of `schema.py`, which says what a knob is.
"""

from typing import Annotated, Literal

from msgspec import Meta

from policies.document.section import Section

VictimKind = Literal["newest_started_prefill", "newest", "newest_decode", "self"]


class Kv(Section, frozen=True):
    """What a sequence reserves of the KV pool when it starts, and whose computed prefixes it may use."""

    admit: Annotated[
        Literal["prompt", "max_length"],
        Meta(description="prompt: blocks of the whole prompt; max_length: of the longest it may become."),
    ] = "prompt"
    watermark: Annotated[float, Meta(ge=0, lt=1, description="Share of blocks kept free when a sequence starts.")] = (
        0.01
    )
    share: Annotated[
        Literal["tenant", "all", "none"],
        Meta(
            description="Requests that begin alike share the KV of that prefix. tenant: those of one tenant; all: "
            "everybody's (a tenant can then time what others have asked); none: every prompt is computed."
        ),
    ] = "tenant"


class Preemption(Section, frozen=True):
    """Who gives blocks back when a decode finds none free."""

    victim: Annotated[
        tuple[VictimKind, ...], Meta(min_length=1, description="Tried in this order; the last resort is self.")
    ] = ("newest", "self")
