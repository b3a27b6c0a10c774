"""What every knob is made of: the base of all sections, and the kinds of values that many knobs share.

Owns no knob. A Meta's `extra` holds what error messages need: the `unit` of a number, or the `words` for a pattern.
"""

from typing import Annotated

from msgspec import Meta, Struct

Name = Annotated[
    str,
    Meta(
        pattern=r"^[a-z][a-z0-9_]*$",
        max_length=64,
        extra={"words": "a name of at most 64 lowercase letters, digits and _, starting with a letter"},
    ),
]
Label = Annotated[str, Meta(max_length=256, extra={"words": "text of at most 256 characters"})]
"""Of somebody else's making, in any script."""
Seconds = Annotated[float, Meta(ge=0, extra={"unit": "seconds"})]
Count = Annotated[int, Meta(ge=1)]
Fraction = Annotated[float, Meta(ge=0, le=1)]


class Section(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of the document. Unknown keys are errors, values never change after loading."""
