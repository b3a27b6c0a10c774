"""What a run of the simulator came to: every request's times, and what the cores did.

Owns these records. Knows no policy's rules and computes no percentile: report.py does.
"""

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from policies.scheduling.lengths.lengths import Coverage
from policies.simulation.tokens import Gaps
from policies.simulation.workload import TraceRequest


class Served(Struct, gc=False):
    """What happened to one request; times in seconds of virtual time, None: not (yet)."""

    asked: TraceRequest
    slo_class: str = ""
    """Empty until it is released."""
    first_scheduled_at_s: float | None = None
    """When the first step with tokens of its prompt was planned."""
    prefill_done_at_s: float | None = None
    """End of the step that processed its last prompt token, the first time."""
    first_token_at_s: float | None = None
    last_token_at_s: float | None = None
    finished_at_s: float | None = None
    output_tokens: int = 0
    prefix_hit_tokens: int = 0
    """Tokens of its prompt that were found in the prefix cache at its first start."""
    num_starts: int = 0
    """How often it was given blocks: once, and again after every preemption."""
    refusal: str = ""
    """Code of the refusal, if it was refused."""
    cancellation: str = ""
    """Why it was cancelled, if it was."""


class Outcome(Struct):
    """A run: every request that arrived, and what the cores did."""

    policy: str
    classes: list[tuple[str, float, float]]
    """Name, TTFT and TBT limit in seconds, by priority."""
    served: list[Served]
    gaps: Gaps
    """Request n of these is `served[n - 1]`."""
    simulated_s: float
    preemptions: int
    num_steps: int
    num_step_tokens: int
    """Prompt and output tokens that went through the steps."""
    tile_fill: float
    """Mean over the steps of `tokens / (128 * ceil(tokens / 128))`: how full the tiles of the matrix products were."""
    max_gap: float
    """Largest difference between the counters of backlogged tenants at any event."""
    max_gap_ratio: float
    """Largest `max_gap` over VTC's bound as it was then."""
    jain: float
    """Jain's index of charged service over weight, all tenants, when the last request arrived."""
    coverage: Coverage = Coverage()
    """How often predicted output lengths held; nothing where the policy goes by none."""
    recomputed_tokens: int = 0
    """Tokens that preempted sequences computed again."""
    given_up: bool = False
    """Whether the run was ended before its time because nobody wanted to know the rest."""

    @property
    def gaps_s(self) -> dict[str, NDArray[np.float64]]:
        """The gaps by class, for classes that have any."""
        names = [name for name, _, _ in self.classes]
        of_request = np.array([names.index(s.slo_class) if s.slo_class else -1 for s in self.served], np.int64)
        classes = of_request[self.gaps.requests - 1]
        by_class = ((name, self.gaps.seconds[classes == number]) for number, name in enumerate(names))
        return {name: seconds for name, seconds in by_class if len(seconds)}
