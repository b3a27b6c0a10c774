"""One request of a workload, and what is said of a workload that cannot be used."""

from typing import NamedTuple


class TraceError(Exception):
    """A trace that cannot be used; the sentence names the file, the line and what is accepted."""


class TraceRequest(NamedTuple):
    """One request of a workload."""

    arrived_at_s: float
    tenant: str
    tier: str
    prompt_tokens: int
    output_tokens: int
    """Until it ends by itself."""
    key_tokens: int = 0
    prompt_keys: bytes = b""
    """What its prompt has in common with others; both as in `policies.events.Released`."""
    max_output_tokens: int | None = None
    """What it asks for at most; None: just what it will get, as in the published experiments."""
    weight: float = 1.0
    service_tier: str | None = None
    allowed_classes: tuple[str, ...] = ()
    project: str = "default"
    key: str = ""
    """These five as in `policies.events.Arrived`."""

    @property
    def declared_tokens(self) -> int:
        """Output tokens that a policy must reckon with."""
        return self.output_tokens if self.max_output_tokens is None else self.max_output_tokens
