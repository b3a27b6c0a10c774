"""Every name that leaves Fairlead in telemetry, in one table: spans, attributes, metrics and their units.

The OpenTelemetry conventions for generative AI are still moving: what they name is under `GENAI`, ours begins with
`fairlead.`. Nothing else in the project spells one of these names.
"""

from typing import NamedTuple

SERVICE = "fairlead-{}"
"""`service.name` of a service."""

# --- spans of one request, from the outside in (telemetry specification, section 3) -----------------------------------

CHAT, TOKENIZE, ADMISSION, QUEUE = "chat", "tokenize", "admission", "queue"
PREFILL, CHUNK, DECODE, TOKEN, DELIVER = "prefill", "chunk", "decode", "token", "deliver"
STEP = "step"

# --- attributes -------------------------------------------------------------------------------------------------------

GENAI_OPERATION = "gen_ai.operation.name"
GENAI_PROVIDER = "gen_ai.provider.name"
GENAI_REQUEST_MODEL = "gen_ai.request.model"
GENAI_RESPONSE_MODEL = "gen_ai.response.model"
GENAI_RESPONSE_ID = "gen_ai.response.id"
GENAI_MAX_TOKENS = "gen_ai.request.max_tokens"
GENAI_CHOICES = "gen_ai.request.choice.count"
GENAI_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GENAI_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
ERROR_TYPE = "error.type"

TENANT, PROJECT, CLASS = "fairlead.tenant", "fairlead.project", "fairlead.class"
REQUEST, SEQUENCE, OUTCOME = "fairlead.request", "fairlead.sequence", "fairlead.outcome"
POLICY_NAME, POLICY_REVISION = "fairlead.policy.name", "fairlead.policy.revision"
KEPT = "fairlead.kept"
"""Why a request's tokens have spans: `slo_miss`, `error` or `sampled`."""
SLO_MISSED, SLO_BLAME = "fairlead.slo.missed", "fairlead.slo.blame"
WAIT = "fairlead.wait.{}_s"
"""Of admission, by cause."""
COUNTER = "fairlead.fairness.counter"
PREFIX_HITS = "fairlead.prefix_hit_tokens"
NUM_CHUNKS, CHUNK_TOKENS = "fairlead.num_chunks", "fairlead.chunk_tokens"
NUM_PREEMPTIONS = "fairlead.num_preemptions"
TOKENS = "fairlead.tokens"
"""All stamps of a request's tokens; `services/telemetry/keeper/arrays.py` reads them."""
INDEX, CAUSE, PART = "fairlead.token.index", "fairlead.token.cause", "fairlead.token.{}_s"
STEP_NUMBER, EXECUTOR = "fairlead.step", "fairlead.executor"
STEP_BUDGET, STEP_KV = "fairlead.step.budget_use", "fairlead.step.kv_use"
STEP_PREFILL_TOKENS, STEP_DECODE_TOKENS = "fairlead.step.prefill_tokens", "fairlead.step.decode_tokens"
CLOCK_UNCERTAINTY = "fairlead.clock.uncertainty_s"
"""How far a boundary between two hosts may be off."""


# --- metrics ----------------------------------------------------------------------------------------------------------


class Metric(NamedTuple):
    """A metric's name, unit, labels and one sentence."""

    name: str
    unit: str
    labels: tuple[str, ...]
    help: str


REQUEST_DURATION = Metric(
    "gen_ai.server.request.duration", "s", ("class",), "From the request received to the last token written."
)
TIME_TO_FIRST_TOKEN = Metric(
    "gen_ai.server.time_to_first_token", "s", ("class",), "From the request received to the first token written."
)
TIME_PER_OUTPUT_TOKEN = Metric(
    "gen_ai.server.time_per_output_token", "s", ("class",), "Mean time between the tokens of a request."
)
TOKEN_USAGE = Metric("gen_ai.client.token.usage", "tokens", ("type",), "Prompt, cached and output tokens.")
TOKEN_LATENCY = Metric(
    "fairlead.token.latency", "s", ("class", "part"), "Time between a reader's tokens, by the part it was spent in."
)
TOKEN_GAP = Metric("fairlead.token.gap", "s", ("class",), "Time between two tokens written to a reader.")
TOKEN_WAIT = Metric("fairlead.token.wait", "s", ("cause",), "Time a token waited to be planned, by the reason.")
FIRST_TOKEN_LATENCY = Metric(
    "fairlead.first_token.latency", "s", ("class", "part"), "Time to the first token, by the part it was spent in."
)
SLO_ATTAINMENT = Metric(
    "fairlead.slo.attainment", "1", ("class", "slo"), "Share of requests of the last minutes within their promise."
)
SLO_MISSES = Metric("fairlead.slo.misses", "1", ("class", "slo", "part"), "Broken promises, by the part to blame.")
SLO_KEPT = Metric("fairlead.slo.checked", "1", ("class", "slo"), "Promises looked at, broken or not.")
REQUESTS = Metric("fairlead.requests", "1", ("outcome", "reason"), "Requests that ended.")
STEP_DURATION = Metric("fairlead.step.duration", "s", (), "Time of one forward pass.")
STEP_TOKENS = Metric("fairlead.step.tokens", "tokens", ("kind",), "Tokens computed, prefill and decode.")
STEP_BUDGET_USE = Metric("fairlead.step.budget_use", "1", (), "Share of the token budget that steps used.")
KV_USED_BLOCKS = Metric("fairlead.kv.used_blocks", "1", (), "KV blocks held by sequences.")
KV_BLOCKS = Metric("fairlead.kv.blocks", "1", (), "KV blocks there are.")
PREEMPTIONS = Metric("fairlead.preemptions", "1", ("cause",), "Sequences that gave their blocks back.")
PREFIX_HIT_TOKENS = Metric("fairlead.prefix_hits", "tokens", (), "Prompt tokens found in the prefix cache.")
RECOMPUTED_TOKENS = Metric("fairlead.recomputed", "tokens", (), "Tokens that were computed again after a preemption.")
SEQUENCES = Metric("fairlead.sequences", "1", ("state",), "Released sequences: waiting, in prefill, in decode.")
PREDICTION_COVERAGE = Metric(
    "fairlead.prediction.coverage", "1", ("bound",), "Share of outputs that kept to the predicted bound."
)
EXECUTOR_STEPS = Metric("fairlead.executor.compute", "s", (), "Time from the launch of a step to its result.")
EXECUTOR_GAP = Metric("fairlead.executor.idle", "s", (), "Time between a result and the next launch.")
QUEUE_DEPTH = Metric("fairlead.queue.depth", "1", ("class",), "Requests that wait.")
GAP_RATIO = Metric("fairlead.fairness.gap_ratio", "1", (), "Largest counter gap over its bound: at most 1.")
JAIN = Metric("fairlead.fairness.jain", "1", (), "Jain's index of the backlogged tenants' service.")
TENANT_SERVICE = Metric("fairlead.tenant.service", "1", ("tenant",), "Service charged, in cost units.")
WINDOW = Metric("fairlead.admission.window", "tokens", ("kind",), "Of the in-flight window: reserved, and its limit.")
REFUSALS = Metric("fairlead.admission.refusals", "1", ("reason",), "Requests that admission refused.")
LOST = Metric("fairlead.admission.lost", "1", (), "Released requests settled because their scheduler was gone.")
LIMIT_DECISIONS = Metric("fairlead.limits.decisions", "1", ("dimension", "outcome"), "What limits answered.")
REVISION = Metric("fairlead.policy.revision", "1", (), "The policy revision in force.")
RELOADS = Metric("fairlead.policy.reloads", "1", ("outcome",), "Saves of the policy file, applied or rejected.")
EXECUTORS_UP = Metric("fairlead.executor.up", "1", (), "Executors that are ready.")
KEYS_REFUSED = Metric("fairlead.keys.refused", "1", ("reason",), "Requests refused for their API key.")
EXECUTORS_ABANDONED = Metric("fairlead.executor.abandoned", "1", (), "Executors given up because no step came back.")
DISCARDED = Metric("fairlead.tokens.discarded", "tokens", (), "Tokens made after a stop string was complete.")
RESUMED = Metric("fairlead.requests.resumed", "1", (), "Requests sent to another scheduler after theirs was lost.")
REQUESTS_RUNNING = Metric("fairlead.requests.running", "1", (), "Requests that wait or run.")
DEGRADED = Metric("fairlead.degraded", "1", ("what",), "1 while something that should be kept cannot be.")
RECORDS_DROPPED = Metric("fairlead.telemetry.records_dropped", "1", (), "Records that did not reach the keeper.")
DROPPED = Metric("fairlead.telemetry.dropped", "1", ("what",), "Records that telemetry could not keep.")
