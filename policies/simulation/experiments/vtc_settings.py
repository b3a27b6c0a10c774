"""What VTC's evaluation compares: the policies, and which of them is run on which workload.

Owns the authors' loop as a policy document (fairness specification, 12.3) and the list of cases. Runs nothing.
"""

from typing import Literal, NamedTuple

from policies.simulation.experiments.vtc_metrics import CostOf, profiled, weighted_tokens

Cost = Literal["weighted_tokens", "quadratic"]
REAL = "real"
SEED = 42
"""Of the published runs."""
POOL_TOKENS = 10_000
MINIBATCH_TOKENS = 3072
CYCLE_STEPS = 10
"""Decode steps between two admissions, at least."""

DOCUMENT = """version: 1
name: {name}
classes: [{{name: all, ttft_s: 1, tbt_s: 1}}]
limits: {limits}
fairness:
  {fairness}
  cost: {cost}
  levels: [tenant]
  window_tokens: {pool}
  reserve: occupancy
  max_requests: 1000
  admit_every_steps: {cycle}
  admit_prompt_tokens: {minibatch}
queue: {{per_tenant_max: 1000000, total_max: 1000000, ttl_s: 1000000000}}
batching:
  token_budget: none
  max_sequences: 1000
  max_decodes: 1000
  stages:
    - prefill: {{from: waiting, chunked: false, exclusive: true}}
    - decode:  {{when: any}}
kv: {{admit: prompt, watermark: 0, share: none}}
preemption: {{victim: [self]}}
"""
"""Prompts run whole and alone while decodes wait; the window never lets the pool run out."""

COSTS: dict[Cost, str] = {
    "weighted_tokens": "{kind: weighted_tokens, prompt: 1, output: 2}",
    "quadratic": "{kind: quadratic, a: 0.21001891, b: 0.10075395, c: 0.0039868, d: 0.00324733, e: 1.14601454}",
}
COUNTED: dict[Cost, CostOf] = {"weighted_tokens": weighted_tokens, "quadratic": profiled}
"""How service is counted where a policy goes by that cost."""

FAIRNESS = {
    "fcfs": "kind: fcfs",
    "lcf": "kind: lcf",
    "vtc": "kind: vtc",
    "vtc_predict": "kind: vtc\n  predictor: {ema: 0.2}",
    "vtc_noisy": "kind: vtc\n  predictor: {noisy_oracle: 0.5}",
    "vtc_oracle": "kind: vtc\n  predictor: oracle",
}
"""The published run with a predictor used a mean of falling weights, whatever the text says."""
RPM = "rpm_"
LIMITED = tuple(f"{RPM}{rate}" for rate in (5, 10, 15, 20, 30))
ONE_RUN = frozenset({"fcfs", "lcf", *LIMITED})
"""Of these the authors made one run and counted it by both costs: all but LCF go by no cost, and theirs of LCF knows
the linear one alone.
"""
LIMIT = "[{{scope: tenant, dimension: requests, rate_per_min: {rate}, algorithm: sliding_log}}]"
"""Who is over it is refused, not queued, and nobody tries again."""


def document(policy: str, cost: Cost) -> bytes:
    """One of the experiment's own policies, which decides by that cost."""
    limited = policy in LIMITED
    text = DOCUMENT.format(
        name=policy,
        limits=LIMIT.format(rate=policy.removeprefix(RPM)) if limited else "[]",
        fairness=FAIRNESS["fcfs" if limited else policy],
        cost=COSTS["weighted_tokens" if policy in ONE_RUN else cost],
        pool=POOL_TOKENS,
        cycle=CYCLE_STEPS,
        minibatch=MINIBATCH_TOKENS,
    )
    return text.encode()


OWN = {name: document(name, "weighted_tokens") for name in (*FAIRNESS, *LIMITED)}
"""The experiment's own policies by name."""


class Case(NamedTuple):
    """A policy on a workload, judged by a cost."""

    workload: str
    policy: str
    cost: Cost = "weighted_tokens"


def _cases(workload: str, policies: tuple[str, ...], cost: Cost = "weighted_tokens") -> tuple[Case, ...]:
    return tuple(Case(workload, policy, cost) for policy in policies)


BOTH = ("fcfs", "vtc")
TABLE_5 = ("vtc", "vtc_noisy", "vtc_oracle")
CASES = (
    *_cases(REAL, ("fcfs", "lcf", "vtc", "vtc_predict", "vtc_oracle", *LIMITED)),
    *_cases(REAL, ("fcfs", "lcf", "vtc", "vtc_predict", "vtc_oracle", "rpm_5", "rpm_20", "rpm_30"), "quadratic"),
    *_cases("overload_600s", ("fcfs",), "quadratic"),
    *_cases("overload", ("vtc", "vtc_oracle"), "quadratic"),
    *_cases("overload_600s", BOTH),
    *_cases("overload", ("fcfs", *TABLE_5)),
    *_cases("eight_tenants", ("fcfs", *TABLE_5)),
    *_cases("proportional", BOTH),
    *_cases("on_off_less", BOTH),
    *_cases("on_off_overload", BOTH),
    *_cases("poisson_short_long", BOTH),
    *_cases("poisson_short_long_2", BOTH),
    *_cases("increase", BOTH),
    *_cases("dist_shift", ("lcf", "vtc")),
    *_cases("poisson_on_off", BOTH),
    *_cases("weighted", ("vtc",)),
)
"""In the order of the paper's tables and figures. Its overload under FCFS asked for 600 s and under VTC for 360 s; both
are run for both."""
