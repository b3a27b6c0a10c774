"""What is asked of a limit and what it answers.

Knows names, amounts and rates; does not know algorithms, requests or stores.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Dimension = Literal["requests", "prompt_tokens", "output_tokens", "total_tokens", "concurrency", "queued"]
Scope = Literal["key", "project", "tenant", "class", "model"]
Algorithm = Literal["gcra", "token_bucket", "sliding_log", "gauge"]
Mode = Literal["hard", "only_when_saturated"]


class LimitItem(Struct, frozen=True, omit_defaults=True):
    """An amount of one limit that a request takes."""

    scope: Scope
    subject: str
    """Whose: of a key its id, of a project `tenant/project`, of a tenant or class its name, of the model `model`."""
    dimension: Dimension
    algorithm: Algorithm
    """`gauge`: a count of what is there now (`concurrency`, `queued`), given back whole."""
    amount: int
    limit: int
    """Per period; of a gauge, at the same time."""
    period_s: int = 60
    burst: int = 0
    """The most that may be taken at once; of a gauge and a sliding log, `limit`."""
    slo_class: str = ""
    """The limit is for requests of this class only; empty: for those of every class together."""
    mode: Mode = "hard"

    @property
    def name(self) -> str:
        """Of the one limit of which this takes: the same for all who share it, whatever the limit's size is now."""
        apart = f"{self.algorithm}:{self.slo_class}:{self.mode}"
        return f"{self.scope}:{self.subject}:{self.dimension}:{self.period_s}:{apart}"

    @property
    def most(self) -> int:
        """Whoever asks for more than this can never have it."""
        return self.burst if self.algorithm in ("gcra", "token_bucket") else self.limit


class LimitState(Struct, frozen=True, omit_defaults=True):
    """What is left of a limit after an answer, as clients are told."""

    scope: Scope
    subject: str
    dimension: Dimension
    limit: Annotated[int, Meta(ge=0, le=2**60)]
    period_s: Annotated[int, Meta(ge=0, le=2**60)]
    remaining: Annotated[int, Meta(ge=0, le=2**60)]
    full_in_s: Annotated[float, Meta(ge=0, le=1e12)]
    """Until nothing of it is taken, if nobody takes more; 0 for a gauge."""
