"""The workloads of VTC's evaluation: as many requests as the authors', at the same times."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from policies.simulation.experiments.vtc_workloads import BURSTS, WORKLOADS, chat_of_27, workload

COUNTS = {
    "overload": (540, 1080),
    "overload_600s": (900, 1800),
    "proportional": (150, 300, 900),
    "on_off_less": (150, 1200),
    "on_off_overload": (600, 1800),
    "poisson_short_long": (4826, 874),
    "poisson_short_long_2": (4826, 874),
    "increase": (300, 660),
    "dist_shift": (539, 1350),
    "poisson_on_off": (168, 1177),
    "weighted": (144, 288, 432, 576),
    "eight_tenants": (144, 144, 144, 216, 216, 216, 216, 216),
}


def test_every_workload_has_a_count() -> None:
    assert set(COUNTS) == set(WORKLOADS)


@pytest.mark.parametrize("name", list(COUNTS))
def test_each_tenant_asks_as_often_as_in_the_published_runs(name: str) -> None:
    requests = workload(name, 42)
    counts = Counter(request.tenant for request in requests)
    assert tuple(counts[tenant] for tenant in sorted(counts)) == COUNTS[name]
    assert all(one.arrived_at_s <= other.arrived_at_s for one, other in pairwise(requests))
    assert requests == workload(name, 42)


def test_lengths_are_the_recipes() -> None:
    assert {request[3:5] for request in workload("overload", 42)} == {(256, 256)}
    by_tenant = {(request.tenant, *request[3:5]) for request in workload("poisson_short_long_2", 42)}
    assert by_tenant == {("0", 512, 32), ("1", 32, 512)}
    drawn = [tokens for request in workload("poisson_on_off", 42) for tokens in request[3:5]]
    assert min(drawn) >= 16
    assert max(drawn) < 512


def test_an_on_off_tenant_asks_in_every_other_minute_only() -> None:
    for name in ("on_off_less", "on_off_overload", "poisson_on_off"):
        minutes = {int(r.arrived_at_s // 60) % 2 for r in workload(name, 42) if r.tenant == "0"}
        assert minutes == {0}, name


def test_even_arrivals_keep_their_distance_and_a_shift_comes_every_300_s() -> None:
    arrivals = [r.arrived_at_s for r in workload("overload", 42) if r.tenant == "1"]
    assert np.diff(arrivals) == pytest.approx(1 / 3)
    late = [r.arrived_at_s for r in workload("dist_shift", 42) if r.tenant == "1" and r.arrived_at_s > 601]
    assert np.diff(late) == pytest.approx(1 / 1.5)


def test_weights_are_in_proportion_to_what_is_asked_for() -> None:
    weights = {request.tenant: request.weight for request in workload("weighted", 42)}
    assert weights == {"0": 1.0, "1": 2.0, "2": 3.0, "3": 4.0}


def test_the_stand_in_has_the_tenants_and_the_statistics_of_the_trace() -> None:
    requests = chat_of_27(42)
    counts = Counter(request.tenant for request in requests)
    published = (
        296,
        262,
        199,
        120,
        67,
        66,
        56,
        46,
        44,
        43,
        40,
        36,
        31,
        26,
        25,
        23,
        22,
        22,
        19,
        19,
        12,
        11,
        7,
        3,
        2,
        2,
        1,
    )
    assert tuple(sorted(counts.values(), reverse=True)) == published
    assert requests[-1].arrived_at_s <= max(until_s for *_, until_s in BURSTS)
    prompts, outputs = (np.array([request[column] for request in requests]) for column in (3, 4))
    assert prompts.mean() == pytest.approx(136.3, rel=0.1)
    assert outputs.mean() == pytest.approx(256.2, rel=0.05)
    assert np.quantile(prompts, (0.5, 0.9)) == pytest.approx((40, 432), rel=0.15)
    assert np.quantile(outputs, (0.5, 0.9)) == pytest.approx((211, 513), rel=0.15)
    assert (prompts.min(), outputs.min()) >= (2, 2)
    assert (prompts.max(), outputs.max()) <= (1021, 977)
