"""Workloads that need no file.

Owns the named workloads and how their requests are drawn. Knows lengths, times and shared beginnings; does not know
classes or policies. Randomness comes from the seed alone.
"""

from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from policies.scheduling.prefixes import KEY_BYTES
from policies.simulation.arrivals import ARRIVALS, Arrivals
from policies.simulation.parameters import ParameterError, Parameters
from policies.simulation.sharegpt import OUTPUT_QUANTILES, PROMPT_QUANTILES
from policies.simulation.trace_request import TraceError, TraceRequest

KEY_TOKENS = 16
"""Tokens to a key of a prompt."""

Quantiles = tuple[tuple[float, float], ...]
"""(share of the requests, tokens that they have at most), ascending; straight lines in between."""
Counts = NDArray[np.int64]


class Load(NamedTuple):
    """One tenant of a synthetic workload; lengths log-normal around their medians, or by quantiles."""

    tenant: str
    tier: str
    rate: float
    """Requests per second."""
    prompt_tokens: int
    """Median."""
    output_tokens: int
    """Median."""
    spread: float
    """Standard deviation of the logarithm; 0: every request is the same."""
    shared_tokens: int = 0
    """Tokens that all its prompts begin with, before the median above."""
    quantiles: tuple[Quantiles, Quantiles] | None = None
    """Of prompts and outputs; medians and spread say nothing then."""
    mean_turns: float | None = None
    """Of a conversation, in which every prompt is what was said before and something new, of the length above; None:
    every request stands alone."""


AZURE_CONVERSATION: tuple[Quantiles, Quantiles] = (
    (
        (0, 2),
        (0.10, 130),
        (0.25, 380),
        (0.50, 1020),
        (0.75, 1215),
        (0.90, 2100),
        (0.95, 4080),
        (0.99, 4110),
        (1, 14_050),
    ),
    ((0, 1), (0.05, 15), (0.10, 40), (0.25, 75), (0.50, 129), (0.75, 375), (0.90, 425), (0.99, 600), (1, 1000)),
)
"""Prompt and output lengths of the conversation service in the Azure LLM inference trace of 2023, the one analysed in
Splitwise (Patel et al., ISCA 2024, section III). The medians, 1,020 and 129 tokens, are the paper's. The rest
is ours: a few straight lines drawn so that the means are 1,155 and 211, figures that were not checked against the
published files; in the trace prompt and output are not independent as they are here. The trace itself can be replayed
where these lines are too coarse."""
AZURE_CODE: tuple[Quantiles, Quantiles] = (
    ((0, 3), (0.10, 120), (0.25, 600), (0.50, 1500), (0.75, 2800), (0.90, 5000), (0.95, 6100), (0.99, 7000), (1, 7437)),
    ((0, 1), (0.10, 6), (0.25, 8), (0.50, 13), (0.75, 22), (0.90, 50), (0.99, 200), (0.999, 400), (1, 1899)),
)
"""The same of its code completion service: medians of 1,500 and 13 tokens; means, ours, of 2,048 and 28."""

SYNTHETIC: dict[str, tuple[Load, ...]] = {
    "chat": (
        Load("acme", "paid", 0.2, 400, 200, 0.8),
        Load("globex", "free", 0.5, 800, 250, 0.8),
        Load("initech", "free", 0.3, 1500, 150, 0.8),
    ),
    "overload": (Load("light", "free", 1.5, 256, 256, 0.0), Load("heavy", "free", 3.0, 256, 256, 0.0)),
    "mixed_lengths": (Load("short", "free", 2.0, 64, 64, 0.3), Load("long", "free", 0.3, 2048, 512, 0.3)),
    "shared_prefixes": (
        Load("acme", "paid", 0.5, 100, 100, 0.8, shared_tokens=1000),
        Load("globex", "free", 1.0, 200, 150, 0.8, shared_tokens=300),
    ),
    "conversations": (
        Load("acme", "paid", 0.3, 80, 200, 0.8, shared_tokens=400, mean_turns=5.0),
        Load("globex", "free", 0.7, 120, 250, 0.8, shared_tokens=200, mean_turns=5.0),
    ),
    "azure_conversation": (
        Load("paid", "paid", 0.05 * 5.5, 1020, 129, 0.0, quantiles=AZURE_CONVERSATION),
        Load("free", "free", 0.95 * 5.5, 1020, 129, 0.0, quantiles=AZURE_CONVERSATION),
    ),
    "azure_code": (
        Load("paid", "paid", 0.05 * 2.6, 1500, 13, 0.0, quantiles=AZURE_CODE),
        Load("free", "free", 0.95 * 2.6, 1500, 13, 0.0, quantiles=AZURE_CODE),
    ),
    "sharegpt": (
        Load("paid", "paid", 0.05 * 1.6, 1730, 415, 0.0, quantiles=(PROMPT_QUANTILES, OUTPUT_QUANTILES)),
        Load("free", "free", 0.95 * 1.6, 1730, 415, 0.0, quantiles=(PROMPT_QUANTILES, OUTPUT_QUANTILES)),
    ),
}
"""Workloads that need no file. `overload` is the two-tenant one of the VTC paper (figure 3); the rates of `azure_*` are
those of the trace's hour; `sharegpt` has the lengths of SLAI's trace. In these three one request in twenty is of a paid
tenant, as in the published recipe of arrivals."""

HELP = f"""\
synthetic workloads: synthetic:NAME or synthetic:NAME?key=value&...
  {", ".join(SYNTHETIC)}
  arrivals=poisson (the default)
  arrivals=gamma&cv=3: bursts, cv is the coefficient of variation of the gaps
  arrivals=diurnal&period_s=300&depth=0.8: a sine wave around the mean rate
  arrivals=on_off&period_s=120&on_share=0.5: nothing in the rest of every period
  think_s=20: mean time from the end of an answer to the next turn, of conversations
  --qps is the mean rate of all tenants together"""
ANSWER_TOKEN_S = 0.03
"""How long a reader of a conversation waits for a token, in the time between two turns."""
MOST_TURNS = 100


class Drawing(NamedTuple):
    """What the requests of every tenant are drawn with."""

    arrivals: Arrivals
    think_s: float
    duration_s: float
    max_sequence_tokens: int
    generator: np.random.Generator

    @property
    def longest_prompt_tokens(self) -> int:
        """A quarter of the model's context is left for the output."""
        return self.max_sequence_tokens * 3 // 4


def synthetic(
    name: str, *, qps: float | None, duration_s: float, seed: int, max_sequence_tokens: int
) -> list[TraceRequest]:
    """Requests of a named synthetic workload over `duration_s` seconds; `qps` scales all its tenants together.

    `name` may be followed by parameters, see `HELP`.

    Raises:
        TraceError: there is no such workload, or a parameter is wrong.
    """
    try:
        parameters = Parameters(name)
        loads = SYNTHETIC.get(parameters.name)
        if loads is None:
            known = ", ".join(SYNTHETIC)
            raise TraceError(f"synthetic:{parameters.name}: there is no such workload; there are {known}")
        arrivals = ARRIVALS[parameters.choice("arrivals", tuple(ARRIVALS))](parameters)
        in_turns = any(load.mean_turns for load in loads)
        think_s = parameters.number("think_s", 20.0) if in_turns else 0.0
        parameters.finish()
    except ParameterError as error:
        raise TraceError(f"synthetic:{error}") from error
    scale = 1.0 if qps is None else qps / sum(load.rate for load in loads)
    drawing = Drawing(arrivals, think_s, duration_s, max_sequence_tokens, np.random.default_rng(seed))
    requests = [
        request
        for load in loads
        for request in (_conversations(load, scale, drawing) if load.mean_turns else _alone(load, scale, drawing))
    ]
    return sorted(requests, key=lambda request: (request.arrived_at_s, request.tenant))


def _alone(load: Load, scale: float, drawing: Drawing) -> Iterator[TraceRequest]:
    arrivals = drawing.arrivals(load.rate * scale, drawing.duration_s, drawing.generator)
    longest = drawing.longest_prompt_tokens
    shared = min(load.shared_tokens, longest // 2)
    prompts, outputs = _lengths(load, len(arrivals), drawing, longest - shared)
    rows = zip(arrivals.tolist(), (prompts + shared).tolist(), outputs.tolist(), strict=True)
    for number, (arrived_at_s, prompt, output) in enumerate(rows):
        keys = (KEY_TOKENS, _keys(load.tenant, shared, number, prompt)) if shared else (0, b"")
        yield TraceRequest(arrived_at_s, load.tenant, load.tier, prompt, output, *keys)


def _conversations(load: Load, scale: float, drawing: Drawing) -> Iterator[TraceRequest]:
    """Conversations of a geometric number of turns. Those that began before the first second are in their midst then,
    so that the rate does not begin at a fraction of the mean; one ends where the next prompt would be too long.
    """
    mean_turns, generator = load.mean_turns or 1.0, drawing.generator
    lead_s = mean_turns * (drawing.think_s + load.output_tokens * ANSWER_TOKEN_S)
    starts = drawing.arrivals(load.rate * scale / mean_turns, drawing.duration_s + lead_s, generator) - lead_s
    shared = min(load.shared_tokens, drawing.longest_prompt_tokens // 2)
    for number, start_s in enumerate(starts.tolist()):
        num_turns = min(int(generator.geometric(1 / mean_turns)), MOST_TURNS)
        said, outputs = _lengths(load, num_turns, drawing, drawing.longest_prompt_tokens - shared)
        pauses = generator.exponential(drawing.think_s, num_turns) + ANSWER_TOKEN_S * outputs
        arrived_at_s, history = start_s, shared
        for new, output, pause_s in zip(said.tolist(), outputs.tolist(), pauses.tolist(), strict=True):
            prompt = history + new
            if prompt > drawing.longest_prompt_tokens or arrived_at_s >= drawing.duration_s:
                break
            if arrived_at_s >= 0:
                keys = _keys(load.tenant, shared, number, prompt)
                yield TraceRequest(arrived_at_s, load.tenant, load.tier, prompt, output, KEY_TOKENS, keys)
            arrived_at_s += pause_s
            history = prompt + output


def _keys(tenant: str, shared_tokens: int, number: int, prompt_tokens: int) -> bytes:
    """Keys of a prompt that begins like its tenant's others and goes on in the way of its conversation: whose tokens
    they are, and up to which one.
    """
    ends = np.arange(KEY_TOKENS, prompt_tokens + KEY_TOKENS, KEY_TOKENS, dtype=np.int64)
    ends[-1] = prompt_tokens
    names = np.empty((len(ends), 2), np.int64)
    names[:, 0] = np.where(ends <= shared_tokens, _owner(tenant), _owner(f"{tenant} {number}"))
    names[:, 1] = ends
    return names.tobytes()


def _owner(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=KEY_BYTES // 2).digest(), signed=True)


def _lengths(load: Load, count: int, drawing: Drawing, longest_prompt: int) -> tuple[Counts, Counts]:
    """Prompt and output tokens of that many requests, none longer than the model's context."""
    generator, context = drawing.generator, drawing.max_sequence_tokens
    if load.quantiles is None:
        prompts = load.prompt_tokens * np.exp(load.spread * generator.standard_normal(count))
        outputs = load.output_tokens * np.exp(load.spread * generator.standard_normal(count))
        return _clipped(prompts, longest_prompt), _clipped(outputs, context // 4)
    prompts, outputs = (np.interp(generator.random(count), *np.array(quantiles).T) for quantiles in load.quantiles)
    # Long prompts are what such a workload is about: they keep all but a sixteenth of the context.
    fitting = _clipped(prompts, context - context // 16)
    return fitting, _clipped(outputs, context - fitting)


def _clipped(drawn: NDArray[np.float64], longest: int | Counts) -> Counts:
    counts: Counts = np.clip(np.rint(drawn), 1, longest).astype(np.int64)
    return counts
