"""What the default policy promises, in a short run of SLAI's set-up at a rate where Sarathi's median is past it."""

from functools import cache
from pathlib import Path
from typing import Any

from policies.simulation.experiments import slai
from policies.simulation.sharegpt import sharegpt_lengths

SHIPPED = Path(__file__).resolve().parents[4] / "policies"


@cache
def run(policy: str) -> Any:
    point = slai.Point(
        policy=policy,
        document=(SHIPPED / f"{policy}.yaml").read_bytes(),
        lengths=sharegpt_lengths(7, 2000),
        qps=1.8,
        seed=42,
        efficiency=slai.EFFICIENCY,
        strict_share=0.05,
        duration_s=500.0,
    )
    return slai.simulate(point)


def test_readers_wait_less_and_every_class_keeps_its_gaps() -> None:
    ours, sarathi = run("fairlead"), run("sarathi")
    assert ours["ttft_prefill_s"]["p50"] < 0.5 * sarathi["ttft_prefill_s"]["p50"]
    assert ours["ttft_s"]["p50"] < 0.5
    assert ours["tbt_s"]["paid"]["p99"] < 0.1
    assert 0.2 < ours["tbt_s"]["free"]["p99"] < 0.5, "free readers' decodes make way for prompts"


def test_long_prompts_are_not_what_it_costs() -> None:
    ours, sarathi = (run(policy)["long_prompts"]["ttft_prefill_s"]["p99"] for policy in ("fairlead", "sarathi"))
    assert ours < 2 * sarathi
