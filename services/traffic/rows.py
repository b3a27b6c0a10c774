"""What the rows of the recorded traffic say: requests that came, steps that were run, executors that ran them.

Owns the columns. A row holds counts, times, names and salted hashes; never text, token ids or the secret of a key.
"""

from typing import NamedTuple

from services.traffic.store import Table

GATEWAY, SCHEDULER = "gateway", "scheduler"
"""Who writes a store: its file's name."""


class RequestRow(NamedTuple):
    """One request, from its arrival at admission to its end."""

    unix_s: float
    """Wall time of its arrival."""
    tenant: str
    tier: str
    weight: float
    service_tier: str | None
    allowed_classes: str
    """Separated by commas; empty: any."""
    slo_class: str
    """Empty: it was never released."""
    prompt_tokens: int
    max_output_tokens: int
    """Declared, or what was left of the longest sequence; of each choice."""
    num_choices: int
    output_tokens: int
    """Of all choices."""
    outcome: str
    """`finished`, `cancelled`, `refused`, `error`, or `lost` with a service that had it."""
    code: str
    """Why, where it did not finish."""
    ttft_s: float | None
    """Arrival to the end of the step that made its first token, as the scheduler stamps it; None: it got none."""
    gaps: bytes
    """Between its tokens (`services.traffic.gaps`)."""
    key_tokens: int
    prompt_keys: bytes
    """Both as in `policies.events.Released`."""
    revision: int
    """The policy revision in force at its arrival."""
    project: str = "default"
    key: str = ""
    """Both as in `policies.events.Arrived`: limits and shares depend on them."""


class StepRow(NamedTuple):
    """One step of an executor: what it held, and its time."""

    unix_s: float
    executor: int
    prefill_tokens: int
    decodes: int
    context_tokens: int
    num_prefills: int
    prefill_pairs: float
    """These five as in `policies.simulation.step_shape.StepShape`."""
    planned_at_s: float
    """This and the next three on the clock of the scheduler's process."""
    begun_at_s: float
    """Its end less its `step_time_s`."""
    ended_at_s: float
    heard_at_s: float
    """When the scheduler heard of its end."""


class FleetRow(NamedTuple):
    """The executors there are from now on; alike, as those of a deployment are, or described by the first."""

    unix_s: float
    num_executors: int
    description: str
    """Model, device and what else makes a step's time another one."""
    num_blocks: int
    block_tokens: int
    max_sequence_tokens: int
    max_steps_in_flight: int
    copies_blocks: bool


REQUESTS = Table(
    "requests",
    (
        "tenant TEXT",
        "tier TEXT",
        "weight REAL",
        "service_tier TEXT",
        "allowed_classes TEXT",
        "slo_class TEXT",
        "prompt_tokens INTEGER",
        "max_output_tokens INTEGER",
        "num_choices INTEGER",
        "output_tokens INTEGER",
        "outcome TEXT",
        "code TEXT",
        "ttft_s REAL",
        "gaps BLOB",
        "key_tokens INTEGER",
        "prompt_keys BLOB",
        "revision INTEGER",
        "project TEXT",
        "key TEXT",
    ),
)
STEPS = Table(
    "steps",
    (
        "executor INTEGER",
        "prefill_tokens INTEGER",
        "decodes INTEGER",
        "context_tokens INTEGER",
        "num_prefills INTEGER",
        "prefill_pairs REAL",
        "planned_at_s REAL",
        "begun_at_s REAL",
        "ended_at_s REAL",
        "heard_at_s REAL",
    ),
    most_per_flush=200,
)
FLEETS = Table(
    "fleets",
    (
        "num_executors INTEGER",
        "description TEXT",
        "num_blocks INTEGER",
        "block_tokens INTEGER",
        "max_sequence_tokens INTEGER",
        "max_steps_in_flight INTEGER",
        "copies_blocks INTEGER",
    ),
    keeps_newest=True,
)
