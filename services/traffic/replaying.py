"""Recorded requests in the simulator's terms: as a workload to replay, and as an outcome to hold the replay against.

Owns what a row means there. Runs nothing.
"""

from collections.abc import Sequence
from statistics import median_low
from typing import NamedTuple

import numpy as np

from policies.admission.cost import Cost
from policies.admission.evenness import jain
from policies.document.schema import Policy
from policies.simulation.outcome import Outcome, Served
from policies.simulation.tokens import NO_GAPS, Gaps
from policies.simulation.workload import TraceRequest
from services.traffic.gaps import middle_s, unpack
from services.traffic.rows import RequestRow


class Window(NamedTuple):
    """What happened, request by request; request n of `gaps` is `happened[n - 1]`."""

    happened: list[Served]
    gaps: Gaps
    began_unix_s: float
    duration_s: float
    """First arrival to last end."""
    num_left_out: int
    """Requests that got no token and were not refused: what they would have taken nobody knows."""

    @property
    def requests(self) -> list[TraceRequest]:
        """The workload."""
        return [served.asked for served in self.happened]

    def outcome(self, policy: Policy, cost: Cost) -> Outcome:
        """What happened as the outcome of a run under this policy; what was not recorded is 0."""
        return Outcome(
            policy=policy.name,
            classes=[(slo.name, slo.ttft_s, slo.tbt_s) for slo in policy.classes],
            served=self.happened,
            gaps=self.gaps,
            simulated_s=self.duration_s,
            preemptions=0,
            num_steps=0,
            num_step_tokens=0,
            tile_fill=0.0,
            max_gap=0.0,
            max_gap_ratio=0.0,
            jain=self._jain(cost),
        )

    def _jain(self, cost: Cost) -> float:
        """As `Outcome.jain`; a request's tokens are taken to have come evenly."""
        last_arrival_s = self.happened[-1].asked.arrived_at_s
        charged: dict[str, float] = {}
        for served in self.happened:
            asked, first_s, end_s = served.asked, served.first_token_at_s, served.last_token_at_s
            service = 0.0
            if first_s is not None and end_s is not None and first_s <= last_arrival_s:
                share = min(1.0, (last_arrival_s - first_s) / (end_s - first_s)) if end_s > first_s else 1.0
                begun = cost.whole(asked.prompt_tokens, 0)
                service = begun + (cost.whole(asked.prompt_tokens, served.output_tokens) - begun) * share
            charged[asked.tenant] = charged.get(asked.tenant, 0.0) + service / asked.weight
        return jain(list(charged.values()))


def as_window(rows: Sequence[RequestRow]) -> Window:
    """The window of these requests, by arrival, at least one of which got a token.

    A request of several choices is as many requests that arrive together. One that its client left counts as one of as
    many tokens as it got. One that was refused is replayed with the median output of its tenant.
    """
    usual = _usual_outputs(rows)
    began = rows[0].unix_s
    happened: list[Served] = []
    requests, seconds = [], []
    num_left_out = 0
    for row in rows:
        if row.ttft_s is None and row.outcome != "refused":
            num_left_out += 1
            continue
        gaps = unpack(row.gaps)
        of_request = np.repeat([middle_s(number) for number in gaps], list(gaps.values()))
        requests.append(np.full(len(of_request), len(happened) + 1))
        seconds.append(of_request)
        happened += _choices(row, row.unix_s - began, float(of_request.sum()), usual)
    all_gaps = Gaps(np.concatenate(requests), np.concatenate(seconds)) if requests else NO_GAPS
    ends = [served.finished_at_s or served.asked.arrived_at_s for served in happened]
    return Window(happened, all_gaps, began, max(ends, default=0.0), num_left_out)


def _choices(row: RequestRow, arrived_at_s: float, gaps_s: float, usual: dict[str, int]) -> list[Served]:
    refused = row.ttft_s is None
    total = usual.get(row.tenant, row.max_output_tokens) * row.num_choices if refused else row.output_tokens
    served = []
    for choice in range(row.num_choices):
        output_tokens = max(1, total // row.num_choices + (choice < total % row.num_choices))
        asked = TraceRequest(
            arrived_at_s=arrived_at_s,
            tenant=row.tenant,
            tier=row.tier,
            prompt_tokens=row.prompt_tokens,
            output_tokens=min(output_tokens, row.max_output_tokens),
            key_tokens=row.key_tokens,
            prompt_keys=row.prompt_keys,
            max_output_tokens=row.max_output_tokens,
            weight=row.weight,
            service_tier=row.service_tier,
            allowed_classes=tuple(row.allowed_classes.split(",")) if row.allowed_classes else (),
            project=row.project,
            key=row.key,
        )
        if refused:
            served.append(Served(asked, refusal=row.code))
            continue
        first_s = arrived_at_s + (row.ttft_s or 0.0)
        last_s = first_s + gaps_s / row.num_choices
        served.append(
            Served(
                asked,
                slo_class=row.slo_class,
                first_token_at_s=first_s,
                last_token_at_s=last_s,
                finished_at_s=last_s,
                output_tokens=asked.output_tokens,
            )
        )
    return served


def _usual_outputs(rows: Sequence[RequestRow]) -> dict[str, int]:
    """By tenant, for those with a finished request."""
    found: dict[str, list[int]] = {}
    for row in rows:
        if row.outcome == "finished":
            found.setdefault(row.tenant, []).append(max(1, row.output_tokens // row.num_choices))
    return {tenant: median_low(outputs) for tenant, outputs in found.items()}
