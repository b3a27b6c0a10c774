"""A line of what `fairlead doctor` finds. Torch-free: where torch is missing, that is a finding too."""

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """A subject, what is the case, and why."""

    subject: str
    verdict: str
    reason: str = ""
    obstacle: bool = False
    """With this, nothing can be served."""
