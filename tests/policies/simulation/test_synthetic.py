"""Workloads without a file: their rates, their bursts, and what their prompts share."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from policies.simulation.driver import Simulation
from policies.simulation.executor_model import DEVICES
from policies.simulation.synthetic import HELP, SYNTHETIC, synthetic
from policies.simulation.trace_request import TraceError, TraceRequest

SARATHI = (Path(__file__).resolve().parents[3] / "policies" / "sarathi.yaml").read_bytes()


def make(name: str, **options: Any) -> list[TraceRequest]:
    return synthetic(name, **{"qps": 10.0, "duration_s": 600.0, "seed": 1, "max_sequence_tokens": 16_384, **options})


def variation(requests: list[TraceRequest]) -> float:
    """Of the gaps between the arrivals of the first tenant."""
    times = [request.arrived_at_s for request in requests if request.tenant == requests[0].tenant]
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())


@pytest.mark.parametrize("name", SYNTHETIC)
@pytest.mark.parametrize(
    "arrivals", ["poisson", "gamma&cv=2", "diurnal&period_s=100", "on_off&period_s=60&on_share=0.25"]
)
def test_every_workload_has_its_mean_rate_with_every_kind_of_arrivals(name: str, arrivals: str) -> None:
    requests = make(f"{name}?arrivals={arrivals}")
    # A conversation that would pass the model's context ends early.
    assert len(requests) / 600 == pytest.approx(10.0, rel=0.2 if name == "conversations" else 0.12)
    times = [request.arrived_at_s for request in requests]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] < 600
    assert requests == make(f"{name}?arrivals={arrivals}")


def test_gamma_gaps_vary_as_asked() -> None:
    assert variation(make("overload")) == pytest.approx(1.0, abs=0.1)
    assert variation(make("overload?arrivals=gamma&cv=3")) == pytest.approx(3.0, rel=0.2)


def test_on_off_arrivals_come_in_the_first_part_of_every_period() -> None:
    phases = [request.arrived_at_s % 60 for request in make("chat?arrivals=on_off&period_s=60&on_share=0.25")]
    assert max(phases) < 15


def test_a_day_begins_quiet_and_is_busiest_in_its_middle() -> None:
    phases = np.array([request.arrived_at_s % 100 for request in make("chat?arrivals=diurnal&period_s=100&depth=1")])
    quiet, busy = np.sum(phases < 10), np.sum((phases >= 45) & (phases < 55))
    assert busy > 10 * quiet


@pytest.mark.parametrize(
    ("name", "medians", "means"),
    [
        ("azure_conversation", (1020, 129), (1155, 211)),
        ("azure_code", (1500, 13), (2048, 28)),
        ("sharegpt", (1730, 415), (2340, 438.7)),
    ],
)
def test_workloads_by_quantiles_have_the_published_medians_and_means(
    name: str, medians: tuple[int, int], means: tuple[int, int]
) -> None:
    requests = make(name, max_sequence_tokens=32_768, qps=50.0)
    prompts = [request.prompt_tokens for request in requests]
    outputs = [request.output_tokens for request in requests]
    assert (np.median(prompts), np.median(outputs)) == pytest.approx(medians, rel=0.05)
    assert (np.mean(prompts), np.mean(outputs)) == pytest.approx(means, rel=0.05)
    assert 0.04 < sum(request.tier == "paid" for request in requests) / len(requests) < 0.06


def test_long_prompts_are_kept_up_to_what_the_model_holds() -> None:
    requests = make("sharegpt", max_sequence_tokens=8192, qps=50.0)
    assert max(request.prompt_tokens for request in requests) == 8192 - 8192 // 16
    assert max(request.prompt_tokens + request.output_tokens for request in requests) <= 8192


def test_every_turn_of_a_conversation_begins_with_what_was_said_before() -> None:
    requests = make("conversations", qps=2.0, duration_s=200.0)
    by_beginning: dict[bytes, list[TraceRequest]] = {}
    for request in requests:
        first_own = request.prompt_keys[500 // 16 * 16 : 500 // 16 * 16 + 16]  # past both tenants' shared tokens
        by_beginning.setdefault(first_own, []).append(request)
    turns = [talk for own, talk in by_beginning.items() if own and len(talk) > 1]
    assert len(turns) > 10
    for talk in turns:
        for earlier, later in pairwise(talk):
            assert later.prompt_tokens > earlier.prompt_tokens + earlier.output_tokens
            whole = earlier.prompt_tokens // 16 * 16
            assert later.prompt_keys[:whole] == earlier.prompt_keys[:whole]
            assert later.prompt_keys[whole : whole + 16] != earlier.prompt_keys[whole : whole + 16]


def test_turns_find_their_history_in_the_prefix_cache() -> None:
    requests = make("conversations", qps=1.0, duration_s=60.0, max_sequence_tokens=8192)
    document = SARATHI.replace(b"kv: {", b"kv: {share: tenant, ")
    outcome = Simulation(document, requests, DEVICES["toy-tile"](1.0)._replace(max_sequence_tokens=8192)).run()
    found = sum(served.prefix_hit_tokens for served in outcome.served)
    assert found > 0.3 * sum(request.prompt_tokens for request in requests)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("chat?arrivals=daily", "arrivals is `daily`; it must be one of poisson, gamma, diurnal, on_off"),
        ("chat?arrivals=gamma&cv=0", "cv is `0`; it must be a number above 0"),
        ("chat?arrivals=diurnal&depth=2", "depth is `2`; it must be a number above 0 and at most 1"),
        ("chat?cv=2", "there is no parameter `cv`; it takes arrivals"),
        ("chat?think_s=2", "there is no parameter `think_s`"),
        ("talk?cv=2", "synthetic:talk: there is no such workload; there are chat, overload"),
    ],
)
def test_a_workload_that_is_asked_for_wrongly_is_refused(name: str, sentence: str) -> None:
    with pytest.raises(TraceError) as caught:
        make(name)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("synthetic:")


def test_help_names_every_workload() -> None:
    assert all(name in HELP for name in SYNTHETIC)
