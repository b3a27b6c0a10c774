"""Who `admission.refuse_when_late` refuses wrongly, and what it buys (`fairlead bench refusals`).

In virtual time, with the cores that serve: the same requests under a policy with the knob and without it. A refusal is
false when the same request had its first token in time in the run without refusals. Goodput counts the finished
requests that kept both limits of their class. A round is a seed; the load is a multiple of what the device can carry.
"""

import argparse
import re
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ops.bench.harness import Paired, Row, at_least, at_most, interleave
from policies.simulation.driver import Simulation
from policies.simulation.executor_model import DEVICES
from policies.simulation.outcome import Outcome
from policies.simulation.samples import Samples
from policies.simulation.workload import synthetic

POLICIES = Path(__file__).resolve().parents[2] / "policies"
KNOB = b"admission: {refuse_when_late: true}\n"
SECTION = re.compile(rb"(?m)^admission:.*\n")
"""As a policy ships."""
NAMES = ("fairlead", "sarathi")
"""Short prompts first with a window of three pools, and by arrival with an open window."""
DEVICE = "rtx6000ada-mistral7b"
EFFICIENCY = 0.8
WORKLOAD = "azure_conversation"
CAPACITY_RPS = 5.0
"""About what the device carries of it."""
ARRIVALS_S = 120.0
DURATION_S = 180.0
CODE = "would_be_late"

Mask = NDArray[np.bool_]


class Twins(NamedTuple):
    """The same requests with the knob (ours) and without."""

    goodput_rps: float
    goodput_without_rps: float
    false_share: float
    """Of those refused as late, who would have been in time."""
    refused_share: float
    """Of all requests."""


def run(arguments: argparse.Namespace) -> list[Row]:
    """Measure."""
    rows = []
    for name in arguments.policy or NAMES:
        for load in (0.8, 2.0, 10.0):
            rows += _rows(name, load, arguments.rounds)
    return rows


def twins(name: str, load: float, seed: int, *, arrivals_s: float = ARRIVALS_S) -> Twins:
    """Run a shipped policy with the knob and without it over the same requests."""
    device = DEVICES[DEVICE](EFFICIENCY)
    requests = synthetic(
        WORKLOAD,
        qps=load * CAPACITY_RPS,
        duration_s=arrivals_s,
        seed=seed,
        max_sequence_tokens=device.max_sequence_tokens,
    )
    document = SECTION.sub(b"", (POLICIES / f"{name}.yaml").read_bytes())
    outcomes = [
        Simulation(text, requests, device, duration_s=arrivals_s * DURATION_S / ARRIVALS_S).run()
        for text in (KNOB + document, document)
    ]
    (_, good), (in_time_without, good_without) = (_kept(outcome) for outcome in outcomes)
    refused = np.array([one.refusal == CODE for one in outcomes[0].served])
    false = float(np.count_nonzero(refused & in_time_without))
    return Twins(
        goodput_rps=float(np.count_nonzero(good)) / arrivals_s,
        goodput_without_rps=float(np.count_nonzero(good_without)) / arrivals_s,
        false_share=float(false / max(1, np.count_nonzero(refused))),
        refused_share=float(refused.mean()),
    )


def _rows(name: str, load: float, rounds: int) -> list[Row]:
    seen: list[Twins] = []

    def with_it() -> float:
        seen.append(twins(name, load, seed=len(seen)))
        return seen[-1].goodput_rps

    goodput = interleave(with_it, lambda: seen[-1].goodput_without_rps, rounds=rounds, warmup=0)
    refused = f"{np.median([one.refused_share for one in seen]):.1%} of all requests are refused"
    must, stretch = (0.98, 1.0) if load < 1 else (1.0, 2.0)
    rows = [at_least(f"{name}_goodput_at_{load:g}x", "requests/s", goodput, must=must, stretch=stretch)]
    # Below capacity a handful is refused, and a share of it says nothing: the share of all does.
    shares = [one.false_share * (one.refused_share if load < 1 else 1.0) for one in seen]
    false = Paired(float(np.median(shares)), 1.0, float(np.median(shares)), tuple(shares))
    of = "all" if load < 1 else "refusals"
    rows.append(at_most(f"{name}_false_refusals_at_{load:g}x", f"share of {of}", false, must=0.05, stretch=0.01))
    return [msgspec.structs.replace(row, note=refused) for row in rows]


def _kept(outcome: Outcome) -> tuple[Mask, Mask]:
    """Which requests had their first token in time, and which of these finished without a gap too long."""
    samples = Samples(outcome)
    limits = {name: ttft_s for name, ttft_s, _ in outcome.classes}
    in_time = np.array(
        [
            one.first_token_at_s is not None
            and one.first_token_at_s - one.asked.arrived_at_s <= limits.get(one.slo_class, 0.0)
            for one in outcome.served
        ]
    )
    return in_time, in_time & samples.finished & (samples.late_gaps == 0)
